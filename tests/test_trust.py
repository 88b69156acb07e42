"""What files say is data: none names code, and none is taken for what it is not; a problem that changed is another one."""

import json
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import synthnet
from conftest import make_policy
from problem import blobs, net
from synthnet.errors import InputError
from synthnet.files import write_safetensors
from synthnet.lab.fork import lay_out, run_command
from synthnet.nets import read_weights
from synthnet.policy import read_policy
from synthnet.tasks import build_task, data_settings
from synthnet.tasks.fingerprint import told
from synthnet.tasks.registry import own_task
from test_cli import run

EVIL = """
from pathlib import Path
Path("ran").write_text("code of a file")
import synthnet
def task(): raise SystemExit(1)
"""


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A weight file and a policy whose metadata name a task by a file of code."""
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text(EVIL)
    task = build_task("digits-mlp", hidden=[8])
    flat = task.draw_start("user", [0])[0]
    said = {"synthnet.arch": json.dumps(task.arch.to_dict()), "synthnet.task": "evil.py:task"}
    write_safetensors("w.safetensors", task.network.spec.unflatten(flat), said)
    policy = make_policy(task)
    policy.record = {"task": "evil.py:task", "data": {"split_seed": 0, "data_dir": "/etc"}, "stages": []}
    policy.save("p.safetensors")


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "w.safetensors", "--split", "val"],
        ["sgd", "w.safetensors", "-o", "t.safetensors"],
        ["evaluate", "--policy", "p.safetensors", "--seeds", "2", "--split", "val"],
        ["evaluate", "--policy", "p.safetensors", "--set", "hidden=[8]", "--seeds", "2", "--split", "val"],
    ],
)
def test_no_metadata_name_code_to_run(evil, capsys, command):
    code, _, err = run(capsys, *command)
    assert code == 2 and "may name no code" in err
    assert not Path("ran").exists()


def test_of_recorded_data_two_whole_numbers_are_read():
    recorded = {"source": "digits", "split_seed": 3, "held_back": 10, "data_dir": "/etc", "name": "x"}
    assert data_settings(recorded) == {"split_seed": 3, "held_back": 10}
    assert data_settings({"joint": [recorded]}) == {"split_seed": 3, "held_back": 10}
    assert data_settings({"split_seed": "x"}) == {} and data_settings(None) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"stages": [{"stage": 3}]},
        {"stages": [5]},
        {"stages": [{"stage": "grpo", "command": [1]}]},
        {"data": "x"},
        {"data": {"joint": []}},
        {"inputs": 5},
        {"inputs_of": 5},
        {"task": ["a"]},
        {"members": [["a"]]},
        {"best_k": "2"},
    ],
)
def test_malformed_records_of_policies_end_in_one_line(tmp_path, capsys, change):
    task = build_task("digits-mlp", hidden=[8])
    policy = make_policy(task)
    policy.record = {"task": "digits-mlp", "data": task.data_key, "stages": [], **change}
    policy.save(tmp_path / "p.safetensors")
    assert run(capsys, "init", "--set", "hidden=[8]", "-o", tmp_path / "w.safetensors")[0] == 0
    for command in (
        ["inspect", tmp_path / "p.safetensors"],
        ["synthesize", tmp_path / "w.safetensors", "--policy", tmp_path / "p.safetensors", "-o", tmp_path / "o.safetensors"],
        ["evaluate", "--policy", tmp_path / "p.safetensors", "--seeds", "2", "--split", "val"],
    ):
        code, _, err = run(capsys, *command)
        assert (code, err.count("synthnet: ")) == (2, 1) and "malformed record" in err, command


def test_files_of_two_tasks_go_to_a_policy_and_to_twins_of_their_own(tmp_path, monkeypatch, capsys):
    """Digits and MNIST nets of one architecture: each as it comes out alone."""
    monkeypatch.chdir(tmp_path)
    for name in ("digits-mlp", "mnist8-mlp"):
        assert run(capsys, "init", "--task", name, "-o", f"{name}.safetensors")[0] == 0
        assert run(capsys, "synthesize", f"{name}.safetensors", "-o", f"{name}-alone.safetensors", "--steps", 1)[0] == 0
    files = ["digits-mlp.safetensors", "mnist8-mlp.safetensors"]
    code, _, err = run(capsys, "synthesize", *files, "-o", "made", "--steps", 1)
    assert code == 0 and "policy digits-mlp:" in err and "policy digits-mnist8:" in err
    for name in ("digits-mlp", "mnist8-mlp"):
        both, alone = read_weights(f"made/{name}.safetensors"), read_weights(f"{name}-alone.safetensors")
        assert both.metadata["synthnet.inputs"] == alone.metadata["synthnet.inputs"]
        assert all(torch.allclose(value, alone.tensors[key], atol=1e-5) for key, value in both.tensors.items())
    asked = []

    def grow(task, start, spec=None):
        asked.append((task.name, len(start)))
        return start

    monkeypatch.setattr("synthnet.tasks.grow_twins", grow)
    assert run(capsys, "sgd", *files, "-o", "twins")[0] == 0
    assert asked == [("digits-mlp", 1), ("mnist8-mlp", 1)]


def test_a_policy_warns_of_a_net_for_another_task(tmp_path, capsys):
    assert run(capsys, "init", "--task", "mnist8-mlp", "-o", tmp_path / "m.safetensors")[0] == 0
    command = [
        "synthesize",
        tmp_path / "m.safetensors",
        "--policy",
        "digits-mlp",
        "--steps",
        1,
        "-o",
        tmp_path / "o.safetensors",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code, _, err = run(capsys, *command)
    assert code == 0 and "is a net for task mnist8-mlp, which this policy was never trained for (trained for digits-mlp)" in err
    code, _, err = run(capsys, *command, "--strict")
    assert code == 2 and "as --strict asks" in err


def test_a_problem_that_changed_is_not_resumed_as_if_it_had_not(problem, capsys):
    zoo = ["zoo", "task=mine.py:sides", "zoo.runs=2", "zoo.heldout=0", "run_dir=z"]
    assert run(capsys, *zoo)[0] == 0
    assert run(capsys, *zoo)[0] == 0, "as it was, it goes on"
    text = Path("mine.py").read_text()
    Path("mine.py").write_text(text.replace("X[:, 0] + X[:, 1]", "X[:, 0] - 2 * X[:, 1]"))
    own_task.cache_clear()  # as in another process
    code, _, err = run(capsys, *zoo)
    assert code == 2 and "problem file that has changed" in err
    Path("mine.py").write_text(text.replace("default_rng(0)", "default_rng(0)  # no more than a word"))
    own_task.cache_clear()
    assert run(capsys, *zoo)[0] == 0


def test_functions_are_told_apart_by_all_that_makes_them_differ():
    def scaled(by):
        return lambda outputs, targets: by * F.mse_loss(outputs, targets)

    def first(outputs, targets, by=1.0):
        return by * outputs

    def second(outputs, targets, by=2.0):
        return by * outputs

    second.__qualname__ = first.__qualname__
    assert told(scaled(1.0)) == told(scaled(1.0)) != told(scaled(2.0))
    assert told(first) != told(second)
    assert told(partial(first, by=3)) == told(partial(first, by=3)) != told(partial(first, by=4))
    assert told(partial(first, torch.ones(2))) != told(partial(first, torch.zeros(2)))
    assert told(F.cross_entropy) == "torch.nn.functional.cross_entropy"
    json.dumps(told(scaled(torch.ones(3))))


def test_files_record_the_inputs_that_nets_see_where_images_are_held_back():
    x, y = blobs()
    task = synthnet.Task(module=net, data=synthnet.Data(x, y), name="one", held_back=20)
    shift, scale = task.data.input_map(0, 20)
    assert task.inputs["subtracted"] == shift.float().tolist()
    assert task.inputs["divided_by"] == scale.float().tolist() != task.data.inputs()["divided_by"]


def test_what_cannot_be_is_refused_before_any_work(tmp_path, monkeypatch, capsys, problem):
    refusals = [
        (["evaluate", "w.safetensors", "--set", "hidden=[8]"], "name that too, with --task"),
        (["learn", "digits-mlp", "--target", "x"], "--module and --target are of a file or folder of data"),
        (["critic", "task=cartpole", "policy_from=cartpole"], "cartpole has rewards alone"),
        (["grpo", "task=mine.py:calm", "reward.stability=5", "grpo.signal_every=0"], "leave reward.stability out"),
        (["grpo", "task=mine.py:calm", "reward.python=[mine.py:nan]", "reward.python_weights=[1.0]", "grpo.signal_every=0"],
         "reward functions of your own out"),
        (["grpo", "task=mine.py:calm", "grpo.steps_by=rollout", "grpo.signal_every=0"], "needs grpo.steps_by=group"),
    ]  # fmt: skip
    for command, message in refusals:
        code, _, err = run(capsys, *command)
        assert code == 2 and message in err, (command, err)
    with pytest.raises(InputError, match="a learn run cannot be begun this way"):
        lay_out("learn", {"task": "digits-mlp", "run_dir": str(tmp_path / "r")})


def test_a_file_that_names_an_environment_has_its_sizes(tmp_path, capsys):
    pytest.importorskip("gymnasium", reason="gymnasium is not installed (extra control)")
    task = build_task("digits-mlp", hidden=[8])
    said = {"synthnet.arch": json.dumps(task.arch.to_dict()), "synthnet.task": "gym:CartPole-v1"}
    write_safetensors(tmp_path / "w.safetensors", task.network.spec.unflatten(task.draw_start("user", [0])[0]), said)
    code, _, err = run(capsys, "evaluate", tmp_path / "w.safetensors")
    assert code == 2 and "is not a network of task gym:CartPole-v1" in err


def test_a_run_that_was_stopped_before_its_first_update_is_validated_once(tmp_path, zoo_dir, monkeypatch):
    """An early stop counts validations without a gain: a second one of nothing learned would be one."""
    settings = ["task.hidden=[8]", f"zoo_dir={zoo_dir}", "pairs.loop.updates=2", "pairs.loop.validate_every=1",
                "pairs.val_seeds=2", "backbone.dim=16", "backbone.heads=2", "backbone.edge_dim=4", "lab.tensorboard=false",
                f"run_dir={tmp_path / 'run'}"]  # fmt: skip
    from synthnet.train import loop

    with monkeypatch.context() as patched:

        def pressed(run):
            run._save()
            raise KeyboardInterrupt

        patched.setattr(loop.Run, "_begin", pressed)
        with pytest.raises(KeyboardInterrupt):
            run_command("pairs", settings)
    path = run_command("pairs", settings)
    rows = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows if "val/score" in row] == [0, 1, 2]
    assert read_policy(path).record["stages"][-1]["updates"] == 2
