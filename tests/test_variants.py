"""Variants of a task: specs are drawn, told, checked and recorded; plants and data are what they say."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import synthnet
from conftest import interrupt_at, make_policy
from problem import blobs
from synthnet.audit.evaluation import evaluate_policy
from synthnet.cli import main
from synthnet.engine import Nets, Variants
from synthnet.errors import InputError
from synthnet.lab.fork import run_command
from synthnet.policy import read_policy, synthesize_flat
from synthnet.seeds import generator
from synthnet.tasks import build_task, grow_twins, judge, name_of
from synthnet.tasks.plants import acrobot, cartpole

RANGES = {"length": (0.25, 1.0), "motor": [-1.0, 1.0]}
TRUNK = {"name": "set_transformer", "dim": 16, "heads": 2, "depth": 1, "edge_dim": 8, "condition": 8}
TOLD = ["--spec", "length=0.8", "force=9", "motor=-1"]


def test_specs_lie_in_their_ranges_and_depend_on_their_own_generator_alone():
    variants = Variants.of(RANGES)
    drawn = variants.draw([generator(seed, "spec") for seed in range(400)])
    assert torch.equal(drawn[7:8], variants.draw([generator(7, "spec")]))
    length, motor = drawn.T
    assert 0.25 <= length.min() < 0.27
    assert 0.98 < length.max() <= 1.0
    assert sorted(motor.unique().tolist()) == [-1.0, 1.0]
    assert abs(motor.mean()) < 0.2
    assert torch.equal(variants.scaled(torch.tensor([[0.25, 1.0], [1.0, -1.0]])), torch.tensor([[-1.0, 1.0], [1.0, -1.0]]))
    assert Variants.from_json(json.loads(json.dumps(variants.to_json()))) == variants


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "a dict of 1 to 64 names"),
        ({"a b": (0, 1)}, "names are words"),
        ({"a": (1, 0)}, "expected \\(lowest, highest\\)"),
        ({"a": (0, float("nan"))}, "expected \\(lowest, highest\\)"),
        ({"a": "01"}, "expected \\(lowest, highest\\)"),
        ({"a": [1.0]}, "a list of values"),
        (5, "a dict of 1 to 64 names"),
        ({"a": (0, 10**400)}, "expected \\(lowest, highest\\)"),
    ],
)
def test_what_is_no_spec(given, said):
    with pytest.raises(InputError, match=said):
        Variants.of(given)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (None, "which variant is this for\\? .*length 0.25 to 1, motor one of -1, 1"),
        ({"length": 0.5}, "lacks motor"),
        ({"length": 0.5, "motor": 1.0, "mass": 2.0}, "mass"),
        ({"length": 2.0, "motor": 1.0}, "length should be 0.25 to 1, got 2"),
        ({"length": 0.5, "motor": 0.5}, "motor should be one of -1, 1, got 0.5"),
        ({"length": float("nan"), "motor": 1.0}, "should be a number"),
        ({"length": 10**400, "motor": 1.0}, "should be a number"),
        (5, "numbers by name"),
        ("length=3", "numbers by name"),
    ],
)
def test_specs_that_are_refused(told, said):
    with pytest.raises(InputError, match=said):
        Variants.of(RANGES).spec(told)


def test_a_number_a_little_beyond_its_range_is_said():
    with pytest.warns(UserWarning, match="length=1.1 lies beyond 0.25 to 1"):
        assert Variants.of(RANGES).spec({"length": np.float64(1.1), "motor": 1}).tolist() == [[1.1, 1.0]]


@pytest.mark.parametrize("plant", [cartpole.PLANT, acrobot.PLANT], ids=["cartpole", "acrobot"])
def test_every_step_of_a_plant_is_gymnasiums_own(plant):
    """With Gymnasium's environment given the same numbers."""
    gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed (extra control)")
    plant, environment = plant.differing(list(plant.ranges)), gymnasium.make(plant.environment)
    draw = torch.Generator().manual_seed(0)
    for episode in range(8):
        spec = plant.spec.draw([generator(episode, "spec")])
        environment.reset(seed=episode)
        plant._install(environment.unwrapped, spec[0])
        told = {name: spec[:, i : i + 1] for i, name in enumerate(plant.spec.names)}
        for _ in range(100):
            state = torch.tensor(list(environment.unwrapped.state), dtype=torch.float64)[None, None]
            action = plant.act(torch.randn((1, 1, plant.n_outputs), generator=draw).double())
            moved, pays, over = plant.advance(state, action, **told)
            _, paid, ended, cut, _ = environment.step(action[0, 0].numpy())
            after = torch.tensor(list(environment.unwrapped.state), dtype=torch.float64)
            assert torch.allclose(moved[0, 0], after, atol=1e-9)
            assert pays.item() == pytest.approx(paid, abs=1e-6)
            assert bool(over) == ended
            if ended or cut:
                break


def test_a_cart_is_paid_for_being_near_its_target():
    """Known answers: all of a step's reward at the target, half of it half a metre away, nothing from a metre on."""
    state = torch.zeros((4, 1, 4), dtype=torch.float64)
    targets = torch.tensor([[0.0], [0.5], [-0.5], [1.2]])
    _, pays, over = cartpole.advance(state, torch.ones(4, 1), target=targets)
    assert pays[:, 0].tolist() == pytest.approx([1.0, 0.5, 0.5, 0.0])
    assert not over.any()


def test_a_reversed_motor_turns_a_controllers_outputs_around():
    """Known answer: what a net earns on a plant, the net with its two outputs exchanged earns on the reversed plant."""
    task = build_task("cartpole-plants")
    flat = 5 * task.draw_start("val", list(range(6)))
    tensors = task.network.spec.unflatten(flat)
    turned = {name: value.flip(1) if name.startswith("fc2") else value for name, value in tensors.items()}
    spec = task.draw_spec("val", list(range(6)))
    mirror = spec * torch.tensor([1.0, 1.0, -1.0])
    ours = task.rewards(flat, generator(0, "draw"), spec=spec)
    theirs = task.rewards(task.network.spec.flatten(turned), generator(0, "draw"), spec=mirror)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, task.rewards(flat, generator(0, "draw"), spec=mirror))


def test_a_reward_of_ones_own_meets_the_spec_of_each_net():
    def reward(nets: Nets, draw) -> torch.Tensor:
        return nets.spec[:, 0]

    task = synthnet.Task(
        module=lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)),
        reward=reward,
        example=torch.zeros(1, 5),
        spec={"wanted": (2.0, 3.0)},
        name="wants",
    )
    spec = task.draw_spec("val", [0, 1, 2])
    assert torch.equal(task.rewards(task.draw_start("val", [0, 1, 2]), generator(0, "draw"), spec=spec), spec[:, 0])
    with pytest.raises(InputError, match="which variant is this for"):
        task.rewards(task.draw_start("val", [0]), generator(0, "draw"))


def test_a_policy_that_is_told_a_spec_makes_other_nets_and_its_file_says_of_what(tmp_path):
    task = build_task("cartpole-plants")
    policy = make_policy(task, {**TRUNK, "spec": 3})
    policy.variants = task.variants
    start, spec = task.draw_start("val", [0, 1]), task.draw_spec("val", [0, 1])
    made = synthesize_flat(policy, start, 2, task.network, spec)
    assert not torch.allclose(made, synthesize_flat(policy, start, 2, task.network, spec.flip(0)))
    assert torch.allclose(made, synthesize_flat(policy, start, 2, task.network, spec, chunk=1), atol=1e-5)
    shared, each = (policy(start, 1, task.network, told).mean for told in (spec[:1], spec[:1].expand(2, -1)))
    assert torch.equal(shared, each)
    with pytest.raises(InputError, match="which variant is this for"):
        synthesize_flat(policy, start, 2, task.network)
    policy.save(tmp_path / "p.safetensors")
    again = read_policy(tmp_path / "p.safetensors")
    assert again.variants == task.variants
    assert torch.equal(made, synthesize_flat(again, start, 2, task.network, spec))


def test_a_spec_goes_from_the_command_line_into_the_file_and_on_to_evaluation(tmp_path, capsys):
    task = build_task("cartpole-plants")
    policy = make_policy(task, {**TRUNK, "spec": 3})
    policy.variants, policy.record = task.variants, {"task": "cartpole-plants", "best_k": 1}
    policy.save(tmp_path / "p.safetensors")
    start, out = str(tmp_path / "w.safetensors"), str(tmp_path / "out.safetensors")
    assert main(["init", "--task", "cartpole-plants", "-o", start]) == 0
    synthesize = ["synthesize", start, "--policy", str(tmp_path / "p.safetensors"), "-o", out]
    assert main(synthesize) == 2
    assert "which variant is this for" in capsys.readouterr().err
    for wrong in (["length=9", "force=9", "motor=1"], ["length"], ["length=x"]):
        assert main([*synthesize, "--spec", *wrong]) == 2
    assert main([*synthesize, *TOLD]) == 0
    state = synthnet.read_weights(out)
    assert json.loads(state.metadata["synthnet.spec"]) == {"length": 0.8, "force": 9.0, "motor": -1.0}
    loaded = synthnet.load_policy(tmp_path / "p.safetensors")
    save_file(load_file(start), tmp_path / "stale.safetensors", dict(state.metadata))
    again = loaded.synthesize(tmp_path / "stale.safetensors", spec={"length": 0.3, "force": 9, "motor": 1}, steps=1)
    assert json.loads(again.metadata["synthnet.spec"]) == {"length": 0.3, "force": 9.0, "motor": 1.0}
    from_python = synthnet.synthesize(start, tmp_path / "p.safetensors", spec={"length": 0.8, "force": 9, "motor": -1})
    assert all(torch.equal(state.tensors[name], value) for name, value in from_python.tensors.items())
    pytest.importorskip("gymnasium", reason="gymnasium is not installed (extra control)")
    capsys.readouterr()
    assert main(["evaluate", out, "--json"]) == 0
    (mine,) = json.loads(capsys.readouterr().out)["results"]
    assert main(["evaluate", out, "--json", "--spec", "length=0.8", "force=9", "motor=1"]) == 0
    (other,) = json.loads(capsys.readouterr().out)["results"]
    assert mine["metric"] == "return"
    assert mine["value"] != other["value"]


def test_a_policy_without_a_spec_takes_none(tmp_path, capsys):
    start = str(tmp_path / "w.safetensors")
    assert main(["init", "--task", "digits-mlp", "-o", start]) == 0
    assert main(["synthesize", start, "--policy", "digits-mlp", "-o", start + "2", "--spec", "length=0.8"]) == 2
    assert "told no spec" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:outputs of different seeds")
@pytest.mark.filterwarnings("ignore:no group of any update")
def test_controllers_of_many_plants_are_trained_and_resumed_alike(tmp_path, monkeypatch):
    """Interrupted and gone on with, or not: the same policy, and it is told what the task has."""
    settings = ["experiment=control", "task=cartpole-plants", "backbone.dim=16", "backbone.depth=1", "grpo.prompts=2",
                "grpo.num_generations=4", "grpo.val_seeds=2", "lab.tensorboard=false", "grpo.loop.checkpoint_every=1",
                "grpo.loop.validate_every=1"]  # fmt: skip
    whole, split = (["grpo", *settings, "grpo.loop.updates=3", f"run_dir={tmp_path / name}"] for name in ("run", "split"))
    assert main(whole) == 0
    interrupt_at(2, lambda: run_command("grpo", split[1:]), monkeypatch)
    assert main(split) == 0
    first, second = (load_file(tmp_path / name / "policy.safetensors") for name in ("run", "split"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    policy = read_policy(tmp_path / "run" / "policy.safetensors")
    assert policy.config.backbone["spec"] == 3
    assert policy.variants.names == ["length", "force", "motor"]
    untold = ["grpo", *settings, "backbone.spec=0", "grpo.loop.updates=1", f"run_dir={tmp_path / 'untold'}"]
    assert main(untold) == 0
    assert not read_policy(tmp_path / "untold" / "policy.safetensors").reads_spec


def flipped(inputs, targets, spec):
    """Labels as they are, or exchanged; inputs stretched."""
    turned = torch.where(spec[:, :1] > 0, targets, 1 - targets)
    return inputs * spec[:, 1].float().view(-1, 1, 1), turned


def flips() -> synthnet.Task:
    x, y = blobs(400)
    return synthnet.Task(
        module=lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)),
        data=synthnet.Data(x, y),
        spec={"turn": [-1.0, 1.0], "stretch": (0.5, 2.0)},
        variant=flipped,
        recipe=synthnet.Recipe(1e-2, 32, 20),
        name="flips",
    )


def test_twins_are_trained_and_judged_on_the_data_of_their_spec():
    task = flips()
    start, spec = task.draw_start("val", list(range(4))), torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, 2.0], [-1.0, 0.5]])
    twins, (inputs, targets) = grow_twins(task, start, spec=spec), task.examples("val")
    mine, _ = judge(task, twins, inputs, targets, spec.double())
    turned, _ = judge(task, twins, inputs, targets, spec.double() * torch.tensor([-1.0, 1.0]))
    assert mine.min() > 0.85
    assert torch.allclose(mine + turned, torch.ones(4).double())
    with pytest.raises(InputError, match="nothing says which"):
        judge(task, twins, inputs, targets)


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        (lambda x, y, spec: (x, y), "targets \\[3 10"),
        (lambda x, y, spec: x, "return inputs and targets"),
        (lambda x, y, spec: 1 / 0, "ZeroDivisionError"),
        (lambda x, y, spec: (x, spec[:, :1].expand(3, 10)), "class ids from 0 to 1, as whole numbers"),
        (lambda x, y, spec: (x, torch.full((3, 10), 7)), "class ids from 0 to 1, .*from 7 to 7"),
    ],
)
def test_a_variant_that_gives_other_shapes_is_refused(variant, said):
    x, y = blobs(60)
    task = synthnet.Task(
        module=lambda: nn.Linear(5, 2), data=synthnet.Data(x, y), spec={"turn": (0, 1)}, variant=variant, name="wrong"
    )
    with pytest.raises(InputError, match=said):
        task.varied(torch.zeros(10, 5), torch.zeros(10, dtype=torch.long), torch.zeros(3, 1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:outputs of different seeds")
def test_one_policy_learns_every_variant_of_a_task_that_it_is_told(tmp_path, capsys):
    """Half of the nets must say the opposite of the others: not told, a policy stays at guessing. GRPO goes on from one."""
    task = flips()
    shared = [f"task={name_of(task)}", "threads=1", "lab.tensorboard=false"]
    distil = ["backbone.dim=32", "backbone.heads=2", "backbone.depth=2", "distil.labels=hard", "distil.steps=[1]",
              "distil.nets=16", "distil.images=64", "distil.val_seeds=16", "distil.optim.learning_rate=3e-3",
              "distil.optim.rule=muon", "distil.loop.updates=300", "distil.loop.validate_every=100",
              "distil.standardised=100"]  # fmt: skip
    for told in ("null", "0"):
        assert main(["distil", *shared, *distil, f"backbone.spec={told}", f"run_dir={tmp_path / told}"]) == 0
    grpo = ["grpo.steps=[1]", "grpo.prompts=4", "grpo.draws=4", "reward.batch=64", "grpo.val_seeds=16", "grpo.sigma=0.05",
            "grpo.loop.updates=3", "grpo.signal_every=0"]  # fmt: skip
    assert main(["grpo", *shared, *grpo, f"policy_from={tmp_path / 'null'}", f"run_dir={tmp_path / 'grpo'}"]) == 0
    for name, low, high in (("null", 0.85, 1.0), ("grpo", 0.85, 1.0), ("0", 0.35, 0.65)):
        policy = read_policy(tmp_path / name / "policy.safetensors")
        report = evaluate_policy(policy, task, 16, [1])
        assert low < report["steps"]["1"]["accuracy"]["mean"] < high
    assert report["sgd_twins"]["mean"] > 0.85
    for setting, said in (("reward.robustness=1", "whole nets"), ("grpo.rollout=net", "by example")):
        assert main(["grpo", *shared, *grpo, setting, f"policy_from={tmp_path / 'null'}", f"run_dir={tmp_path / 'no'}"]) == 2
        assert said in capsys.readouterr().err


def test_questions_are_all_there_are_and_those_of_the_test_are_never_trained_on():
    task = build_task("digits-yes")
    seen, unseen = ({tuple(row) for row in part.tolist()} for part in (task.variants.seen, task.variants.unseen))
    assert (len(seen), len(unseen), len(seen | unseen)) == (822, 200, 1022)
    assert all(0 < sum(row) < 10 for row in seen | unseen)
    drawn = {
        purpose: {tuple(row) for row in task.draw_spec(purpose, list(range(300))).long().tolist()} for purpose in ("zoo", "val")
    }
    assert (drawn["zoo"] | drawn["val"]) <= seen
    assert {tuple(row) for row in task.draw_spec("test", list(range(300))).long().tolist()} <= unseen
    inputs, labels = task.examples("val")
    spec = torch.tensor([[0, 1, 0, 0, 0, 0, 0, 0, 0, 0], [1, 0, 1, 1, 1, 1, 1, 1, 1, 1]])
    same, told = task.varied(inputs, labels, spec)
    assert torch.equal(same[1], inputs)
    assert torch.equal(told, torch.stack([labels == 1, labels != 1]).long())


def test_digits_by_other_numbers_are_told_as_flags():
    """A list of more than two values has no order that a policy could read off one number."""
    task = build_task("digits-renumbered")
    spec = task.draw_spec("val", [0, 1])
    told = task.variants.scaled(spec)
    assert (task.variants.width, told.shape) == (100, (2, 100))
    assert torch.equal(told.view(2, 10, 10).argmax(-1), spec.long())
    assert torch.equal(told.view(2, 10, 10).sum(-1), torch.ones(2, 10))
    inputs, labels = task.examples("val")
    assert torch.equal(task.varied(inputs, labels, spec)[1], torch.stack([each[labels] for each in spec.long()]))
    mixed = Variants.of({"length": (0.0, 2.0), "motor": [-1, 1], "gear": [1, 2, 5]})
    assert mixed.scaled(torch.tensor([[1.5, -1.0, 5.0]])).tolist() == [[0.5, -1.0, 0.0, 0.0, 1.0]]
    with pytest.raises(InputError, match="at most 1024 numbers, this one takes 2000"):
        Variants.of({"gear": list(range(2000))})


def test_a_policy_is_judged_on_the_specs_that_it_is_told_alone(tmp_path, capsys):
    task = build_task("cartpole-plants", differ=["length"])
    policy = make_policy(task, {**TRUNK, "spec": 1})
    policy.variants, policy.record = task.variants, {"task": "cartpole-plants", "best_k": 1}
    policy.save(tmp_path / "p.safetensors")
    evaluate = ["evaluate", "--policy", str(tmp_path / "p.safetensors"), "--seeds", "2", "--steps", "1"]
    assert main(evaluate) == 2
    assert "told length 0.25 to 1; task cartpole-plants has length 0.25 to 1, force" in capsys.readouterr().err
    assert main([*evaluate, "--spec", "length=0.5"]) == 2
    pytest.importorskip("gymnasium", reason="gymnasium is not installed (extra control)")
    assert main([*evaluate, "--set", 'differ=["length"]']) == 0


@pytest.mark.filterwarnings("ignore:outputs of different seeds")
def test_ten_classes_answered_with_yes_or_no_by_rewards(tmp_path):
    """The reward on val is that of the data of each net's spec: with accuracy alone, what validation says of accuracy."""
    task = build_task("digits-yes", hidden=[6])
    policy = make_policy(task, {**TRUNK, "spec": 10})
    policy.variants, policy.record = task.variants, {"task": "digits-yes", "data": task.data_key}
    policy.save(tmp_path / "p.safetensors")
    grpo = ["task=digits-yes", "task.hidden=[6]", "threads=1", f"policy_from={tmp_path / 'p.safetensors'}", "grpo.steps=[1]",
            "grpo.prompts=2", "grpo.draws=4", "reward.batch=16", "grpo.val_seeds=3", "grpo.loop.updates=1",
            "grpo.loop.validate_every=1", "reward.accuracy=1", "reward.bounded_loss=0", "lab.tensorboard=false",
            "grpo.signal_every=0"]  # fmt: skip
    run_command("grpo", [*grpo, f"run_dir={tmp_path / 'run'}"])
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    judged = [row for row in rows if "val/reward" in row]
    assert judged
    assert all(row["val/reward"] == pytest.approx(row["val/accuracy_k1"], abs=1e-6) for row in judged)


def test_a_conventionally_trained_net_of_a_spec_says_which(tmp_path, monkeypatch):
    """Of a file that says another spec, the one that was asked for."""
    (tmp_path / "flip.py").write_text(FLIP)
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--task", "flip.py:flip", "-o", "w.safetensors"]) == 0
    for turn in (1, -1):
        assert main(["sgd", "w.safetensors", "--task", "flip.py:flip", "--spec", f"turn={turn}", "-o", "t.safetensors"]) == 0
        assert json.loads(synthnet.read_weights("t.safetensors").metadata["synthnet.spec"]) == {"turn": turn}


FLIP = """
import numpy as np
import synthnet
import torch
from torch import nn

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(120, 5)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] > 0).astype(int)

def turned(x, y, spec): return x, torch.where(spec[:, :1] > 0, y, 1 - y)
def flip():
    return synthnet.Task(module=lambda: nn.Linear(5, 2), data=synthnet.Data(X, Y), spec={"turn": [-1, 1]}, variant=turned,
                         recipe=synthnet.Recipe(1e-2, 32, 2))
"""


def test_images_are_turned_by_the_angle_of_each_net():
    """Known answers: not at all, and by a quarter either way."""
    task = build_task("digits-turned")
    inputs, labels = task.examples("val")
    made, same = task.varied(inputs, labels, torch.tensor([[0.0], [90.0], [-90.0]]))
    picture = inputs.view(-1, 8, 8)
    assert torch.allclose(made[0], inputs, atol=1e-4)
    quarter = made[1].view(-1, 8, 8)
    assert torch.allclose(quarter, picture.rot90(1, (1, 2)), atol=1e-4)
    assert torch.allclose(made[2].view(-1, 8, 8).rot90(2, (1, 2)), quarter, atol=1e-4)
    assert torch.equal(same, labels.expand(3, -1))
