"""What the public brings: files that are not what they seem, reward functions of all sorts, settings twice."""

import json
import math
import os
import resource
import struct
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import make_policy
from synthnet.cli import main
from synthnet.console import as_json
from synthnet.errors import InputError
from synthnet.grpo.hooks import LARGEST, Hook, ask
from synthnet.lab.space import parse_space
from synthnet.nets import read_weights
from synthnet.runs import list_runs
from synthnet.tasks import build_task

QUICK = ["task=digits-mlp", "task.hidden=[8]", "threads=1", "grpo.prompts=2", "grpo.num_generations=4", "grpo.steps=[1]",
         "reward.batch=32", "grpo.val_seeds=2", "grpo.signal_every=0", "grpo.loop.updates=2", "grpo.loop.validate_every=1",
         "lab.tensorboard=false"]  # fmt: skip


def _ask(function, weight=1.0, n=3):
    return ask(Hook(function, weight), [{}] * n, [None] * n, {}, {})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([1.0, float("nan"), 0.0], "gave nan"),
        ([1.0, float("inf"), 0.0], "gave inf"),
        ([1e308, -1e308, 0.0], r"gave 1e\+308"),
        ({0: 1.0, 1: 2.0, 2: 3.0}, "expected a list of numbers, got a dict"),
        ({1.0, 2.0, 3.0}, "got a set"),
        ("123", "got a str"),
        (b"123", "got a bytes"),
        ([1.0, 2.0], "should return 3 numbers"),
        (5.0, "TypeError"),
        ([[1.0], [2.0], [3.0]], "TypeError"),
        (["a", "b", "c"], "ValueError"),
    ],
)
def test_what_a_reward_function_may_not_give(given, said):
    with pytest.raises(InputError, match=said):
        _ask(lambda **_: given)


def test_the_weight_counts_in_what_a_reward_may_be_and_none_does_not_apply():
    with pytest.raises(InputError, match="within"):
        _ask(lambda **_: [LARGEST, 0.0, 0.0], weight=2.0)
    values, _ = _ask(lambda **_: [1, None, True])
    assert values[[0, 2]].tolist() == [1.0, 1.0]
    assert values[1].isnan()
    with pytest.warns(UserWarning, match="gave None for all"):
        _ask(lambda **_: [None] * 3)


def test_what_a_reward_function_switches_in_torch_is_switched_back():
    def meddling(**_):
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        return [0.0, 1.0, 2.0]

    _ask(meddling)
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.filterwarnings("default:.*spread of rewards", "default:.*gave None for all", "default:outputs of different seeds")
@pytest.mark.parametrize("given", ["[0.25] * len(completions)", "[None] * len(completions)"])
def test_a_run_whose_rewards_never_differ_says_so(tmp_path, tiny, capsys, given):
    make_policy(tiny).save(tmp_path / "p.safetensors")
    (tmp_path / "mine.py").write_text(f"def same(*, completions, **_):\n    return {given}\n")
    alone = [f"reward.python=['{tmp_path}/mine.py:same']", "reward.accuracy=0", "reward.bounded_loss=0"]
    assert main(["grpo", *QUICK, *alone, f"policy_from={tmp_path}/p.safetensors", f"run_dir={tmp_path}/run"]) == 0
    said = capsys.readouterr().err
    assert "no group of any update had a spread of rewards" in said
    assert ("gave None for all rollouts" in said) == ("None" in given)


def test_a_value_given_twice_is_one_trial():
    space, _ = parse_space(["grpo.epsilon=0.1,0.1,0.2", "grpo.steps=[1],[1],[1,2]", "grpo.mirrored=true,1"])
    assert space["grpo.epsilon"].choices == (0.1, 0.2)
    assert space["grpo.steps"].choices == ([1], [1, 2])
    assert space["grpo.mirrored"].choices == (True, 1)


@pytest.mark.slow
def test_a_sweep_of_which_every_trial_failed_is_no_success(tmp_path, tiny, capsys):
    make_policy(tiny).save(tmp_path / "p.safetensors")
    wrong = [
        *QUICK[2:],
        "task=digits-mlp",
        "task.hidden=[8]",
        "stages=[grpo]",
        "grpo.num_generations=3,5",
        "grpo.mirrored=true",
    ]
    assert main(["sweep", *wrong, f"policy_from={tmp_path}/p.safetensors", f"run_dir={tmp_path}/sweep"]) == 2
    assert "every trial of the sweep failed" in capsys.readouterr().err


def test_pipes_pointers_and_indexes_are_seen_for_what_they_are(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "lfs.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    for name, said in (
        ("pipe.safetensors", "pipe"),
        ("lfs.safetensors", "git lfs pull"),
        ("model.safetensors.index.json", "index"),
    ):
        for command in (["inspect", name], ["synthesize", name, "-o", "out.safetensors"], ["evaluate", name]):
            assert main([command[0], str(tmp_path / name), *(["-o", str(tmp_path / "o")] if "-o" in command else [])]) == 2
            assert said in capsys.readouterr().err, command
    assert main(["inspect", "/dev/null"]) == 2
    assert "not a regular file" in capsys.readouterr().err


def test_a_users_own_metadata_is_kept(tmp_path):
    task = build_task("digits-mlp")
    tensors = {name: value.clone() for name, value in task.network.spec.unflatten(task.draw_start("user", [1])[0]).items()}
    own = {"author": "A. U. Thor", "licence": "CC0", "synthnet.unknown": "x", "synthnet.task": "digits-mlp"}
    save_file(tensors, tmp_path / "in.safetensors", own)
    assert main(["synthesize", str(tmp_path / "in.safetensors"), "-o", str(tmp_path / "out.safetensors"), "--steps", "1"]) == 0
    from safetensors import safe_open

    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        kept = file.metadata()
    assert kept["author"] == "A. U. Thor" and kept["licence"] == "CC0" and kept["synthnet.task"] == "digits-mlp"
    assert "synthnet.unknown" not in kept
    assert load_file(tmp_path / "out.safetensors").keys() == tensors.keys()


@pytest.mark.parametrize(
    ("sizes", "policy"),
    [
        ((64, 32, 12), "digits-mlp-family"),
        ((784, 64, 26), "mnist-simplemlp-family"),
        ((64, 16, 8), "digits-mlp-family"),
        ((64, 24, 24, 2), "digits-mlp-family-perceiver"),
    ],
)
def test_a_net_of_other_classes_is_refused_before_anything_runs(tmp_path, capsys, sizes, policy):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(a, b) for a, b in pairwise(sizes)]
    save_file(
        {f"fc{n}.{k}": v.detach() for n, layer in enumerate(layers, 1) for k, v in layer.named_parameters()},
        tmp_path / "n.safetensors",
    )
    for chosen in (["--policy", policy], []):
        assert main(["synthesize", str(tmp_path / "n.safetensors"), "-o", str(tmp_path / "o.safetensors"), *chosen]) == 2
        said = capsys.readouterr().err
        assert "classes" in said or "no bundled policy was trained on" in said or "never seen" in said
    assert not (tmp_path / "o.safetensors").exists()


def _header(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_a_tensor_of_more_axes_than_torch_knows_is_refused(tmp_path, capsys):
    bad = tmp_path / "axes.safetensors"
    for axes, code in ((64, 0), (65, 2), (2000, 2)):
        _header(bad, {"x": {"dtype": "F32", "shape": [1] * axes, "data_offsets": [0, 4]}}, b"\0\0\x80?")
        assert main(["inspect", str(bad)]) == code
        said = capsys.readouterr().err
        assert code == 0 or "axes, torch knows at most 64" in said
    assert main(["synthesize", str(bad), "-o", str(tmp_path / "o.safetensors"), "--policy", str(bad)]) == 2


def test_what_a_file_says_reaches_the_terminal_without_its_control_characters_and_in_short(tmp_path, capsys):
    name, long = "a\x1b[31mred\x07", "v\x1b[2J" + "x" * 300_000
    save_file({f"w\x1b[1m\n{'y' * 3000}": torch.ones(2, 3)}, tmp_path / "in.safetensors", {name: long})
    assert main(["inspect", str(tmp_path / "in.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\x07" not in said
    assert len(said) < 20_000
    assert "300,005 characters" in said
    assert main(["inspect", "--json", str(tmp_path / "in.safetensors")]) == 0
    assert json.loads(capsys.readouterr().out)["metadata"][name] == long


def test_a_policy_whose_record_holds_anything_is_described(tmp_path, tiny, capsys):
    policy = make_policy(tiny)
    policy.record = {"stages": [{"stage": "a\x1b[2J", "command": ["\x1b"]}, {}], "task": "x\x1b", "more": [{"a": "\x1b"}]}
    policy.save(tmp_path / "p.safetensors")
    assert main(["inspect", str(tmp_path / "p.safetensors")]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_an_input_is_not_written_over_and_a_missing_folder_is_said_first(tmp_path, capsys):
    folder = tmp_path / "in"
    assert main(["init", "--task", "digits-mlp", "--count", "2", "-o", str(folder)]) == 0
    one = folder / "digits-mlp-0000.safetensors"
    before = one.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(one)
    for command in ("synthesize", "sgd"):
        for source, out in ((one, one), (folder, folder), (one, tmp_path / "link.safetensors")):
            assert main([command, str(source), "-o", str(out)]) == 2
            assert "would write over" in capsys.readouterr().err
        assert main([command, str(one), "-o", str(tmp_path / "no" / "x.safetensors")]) == 2
        assert "does not exist; make it first" in capsys.readouterr().err
    assert one.read_bytes() == before


def test_hidden_files_do_not_stop_a_folder(tmp_path, capsys):
    folder = tmp_path / "in"
    assert main(["init", "--task", "digits-mlp", "--count", "2", "-o", str(folder)]) == 0
    (folder / "._digits-mlp-0000.safetensors").write_bytes(b"\0\5\x16\7")
    assert main(["synthesize", str(folder), "-o", str(tmp_path / "out"), "--steps", "1"]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_json_knows_no_nan(tmp_path, capsys):
    assert as_json({"a": [math.nan, 1.0, -math.inf], "b": {"c": (math.nan,)}, "d": "NaN"}) == (
        '{"a": [null, 1.0, null], "b": {"c": [null]}, "d": "NaN"}'
    )


@pytest.mark.parametrize("setting", ["threads=100000", "threads=-1", "k_max=0", "memory=0", "imagined=-3", "memory=nan"])
def test_settings_of_no_group_keep_their_bounds_too(setting, tmp_path, capsys):
    assert main(["zoo", "task=digits-mlp", setting, f"run_dir={tmp_path}/z"]) == 2
    assert setting.partition("=")[0] in capsys.readouterr().err
    assert not (tmp_path / "z").exists()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.model.module."])
def test_prefixes_of_wrappers_are_seen_through_and_put_back(tmp_path, prefix):
    task = build_task("digits-mlp")
    tensors = {name: value.clone() for name, value in task.network.spec.unflatten(task.draw_start("user", [1])[0]).items()}
    save_file(tensors, tmp_path / "plain.safetensors")
    save_file({prefix + name: value for name, value in tensors.items()}, tmp_path / "wrapped.safetensors")
    for name in ("plain", "wrapped"):
        files = [str(tmp_path / f"{name}.safetensors"), "-o", str(tmp_path / f"{name}-made.safetensors")]
        assert main(["synthesize", *files, "--steps", "1"]) == 0
        assert main(["inspect", files[0]]) == 0
    plain, wrapped = (load_file(tmp_path / f"{name}-made.safetensors") for name in ("plain", "wrapped"))
    assert {prefix + name for name in plain} == set(wrapped)
    assert all(torch.equal(value, wrapped[prefix + name]) for name, value in plain.items())


def test_a_prefix_of_some_names_only_is_none(tmp_path, capsys):
    save_file({"module.fc1.weight": torch.rand(8, 64), "fc1.bias": torch.rand(8)}, tmp_path / "x.safetensors")
    assert main(["synthesize", str(tmp_path / "x.safetensors"), "-o", str(tmp_path / "o.safetensors")]) == 2
    assert "module.fc1.weight" in capsys.readouterr().err


def test_a_name_that_is_too_long_is_one_line(tmp_path, capsys):
    start = tmp_path / "in.safetensors"
    assert main(["init", "--task", "digits-mlp", "-o", str(start)]) == 0
    for out in (tmp_path / ("n" * 256), tmp_path / ("n" * 300) / "x"):
        assert main(["synthesize", str(start), "-o", str(out), "--steps", "1"]) == 2
        assert "name too long" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / ("n" * 256))]) == 2


@pytest.mark.parametrize("code", [0, 1, None])
def test_a_reward_function_that_exits_is_an_error_of_its_own(code):
    def leaving(**_):
        raise SystemExit(code)

    with pytest.raises(InputError, match="reward function leaving: SystemExit"):
        _ask(leaving)


OTHERS = {b"GGUF": "GGUF", b"\x89HDF\r\n": "HDF5", b"\x93NUMPY": "numpy", b"\x1f\x8b\x08": "gzip"}


@pytest.mark.parametrize(("head", "kind"), list(OTHERS.items()))
def test_files_of_other_formats_are_named(tmp_path, capsys, head, kind):
    (tmp_path / "x.safetensors").write_bytes(head + bytes(60))
    assert main(["inspect", str(tmp_path / "x.safetensors")]) == 2
    assert kind in capsys.readouterr().err


def test_the_task_that_metadata_names_is_said_where_it_leaves_no_policy(tmp_path, capsys):
    task = build_task("digits-mlp")
    tensors = {name: value.clone() for name, value in task.network.spec.unflatten(task.draw_start("user", [1])[0]).items()}
    save_file(tensors, tmp_path / "in.safetensors", {"synthnet.task": "mnist5k-mlp"})
    assert main(["synthesize", str(tmp_path / "in.safetensors"), "-o", str(tmp_path / "o.safetensors")]) == 2
    assert "for the task mnist5k-mlp, which the file's metadata names" in capsys.readouterr().err


def test_numbers_beyond_float32_are_said_to_be(tmp_path, capsys):
    task = build_task("digits-mlp")
    tensors = task.network.spec.unflatten(task.draw_start("user", [1])[0])
    save_file({name: value.double() * 1e300 for name, value in tensors.items()}, tmp_path / "in.safetensors")
    assert main(["synthesize", str(tmp_path / "in.safetensors"), "-o", str(tmp_path / "o.safetensors")]) == 2
    assert "beyond what float32 can hold" in capsys.readouterr().err


@pytest.mark.filterwarnings("default:outputs of different seeds")
def test_a_reward_function_that_writes_into_what_it_is_given_changes_no_training(tmp_path, tiny):
    make_policy(tiny).save(tmp_path / "p.safetensors")
    body = "    for each in (*prompts, *(c.weights for c in completions)):\n"
    body += "        for value in each.values():\n            value.zero_()\n"
    give = "    return [c.accuracy for c in completions]\n"
    head = "def {}(*, prompts, completions, **_):\n"
    (tmp_path / "mine.py").write_text(head.format("plain") + give + head.format("writes") + body + give)
    made = []
    for name in ("plain", "writes"):
        own = [
            f"reward.python=['{tmp_path}/mine.py:{name}']",
            f"policy_from={tmp_path}/p.safetensors",
            f"run_dir={tmp_path}/{name}",
        ]
        assert main(["grpo", *QUICK, *own]) == 0
        made.append(load_file(tmp_path / name / "policy.safetensors"))
    assert all(torch.equal(value, made[1][key]) for key, value in made[0].items())


@pytest.mark.parametrize("length", [0x088B1F, 0x80, 0x04034B50 & 0xFFFF])
def test_a_header_whose_length_looks_like_another_format_is_read(tmp_path, length):
    """The first bytes of a file are a number, which may be any."""
    entry = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    text = json.dumps(entry).encode().ljust(length)
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", length) + text + struct.pack("<2f", 1.5, -2.0))
    assert read_weights(tmp_path / "x.safetensors").tensors["x"].tolist() == [1.5, -2.0]


def test_a_file_is_described_by_its_header(tmp_path, capsys):
    """Six sparse gigabytes once took 16 GB of memory, three thousand tensors 13 seconds: values stay unread."""
    big = {"a": {"dtype": "F32", "shape": [40_000, 40_000], "data_offsets": [0, 6_400_000_000]}}
    text = json.dumps(big).encode()
    with (tmp_path / "big.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + 6_400_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main(["inspect", str(tmp_path / "big.safetensors"), "--json"]) == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "kilobytes"
    found = json.loads(capsys.readouterr().out)
    assert (found["n_weights"], found["tokens"]) == (1_600_000_000, {"scheme": "chunk", "tokens": 6_250_000})
    save_file({f"layer.{n}.w": torch.zeros(300) for n in range(3000)}, tmp_path / "many.safetensors")
    assert main(["inspect", str(tmp_path / "many.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"]["tokens"] == 6000


def test_what_a_reward_function_does_to_the_working_directory_is_undone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def wandering(**_):
        os.chdir("/")
        return [0.0, 1.0, 2.0]

    _ask(wandering)
    assert Path.cwd() == tmp_path


def test_complex_rewards_are_refused():
    with pytest.raises(InputError, match="expected real numbers"):
        _ask(lambda **_: [1j, 1.0, 2.0])


def test_names_that_are_no_utf8_are_refused_before_any_work(tmp_path, capsys):
    """Files of weights could be written under them and never read again."""
    name = os.fsdecode(str(tmp_path).encode() + b"/i\xff")
    assert main(["init", "--task", "digits-mlp", "-o", f"{name}.safetensors"]) == 2
    assert main(["grpo", *QUICK, f"run_dir={name}"]) == 2
    assert "is no UTF-8" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_that_memory_has_no_room_for_is_refused(tmp_path, capsys):
    header = {"fc1.weight": {"dtype": "F32", "shape": [1 << 20, 1 << 30], "data_offsets": [0, 1 << 52]}}
    text = json.dumps(header).encode()
    with (tmp_path / "huge.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        try:
            file.truncate(8 + len(text) + (1 << 52))
        except OSError:
            pytest.skip("this disk holds no file of that size")
    assert main(["inspect", str(tmp_path / "huge.safetensors")]) == 2
    assert "cannot be opened" in capsys.readouterr().err


def test_a_pipe_in_a_run_directory_blocks_nobody(tmp_path):
    for name in ("config.yaml", "run.json"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text('{"command": []}')
    for name in ("metrics.jsonl", "applied.jsonl", "lock"):
        os.mkfifo(tmp_path / "run" / name)
    (status,) = list_runs(tmp_path)
    assert (status.name, status.update) == ("run", 0)
