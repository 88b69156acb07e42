"""Problems of the user's own: tasks and data in Python, in problem files and in data files; any module, any measure."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import synthnet
from conftest import interrupt_at
from problem import PROBLEM, blobs, net
from synthnet.engine import Recipe, predictions, score
from synthnet.errors import InputError
from synthnet.lab.fork import run_command
from synthnet.policy import Policy, PolicyConfig
from synthnet.tasks import build_task, grow_twins, recipe_of, strong_recipe
from synthnet.tasks.recipes import recall, remember
from synthnet.train.distil import DistilConfig, check_distil
from test_cli import run


def test_real_targets_are_standardised_and_r2_is_that_of_the_split():
    x, _ = blobs(300)
    task = synthnet.Task(module=lambda: net(1), data=synthnet.Data(x, 40 * x[:, 0] + 7), name="line")
    inputs, targets = task.examples("val")
    assert task.objective.name == "r2"
    starts = task.draw_start("val", [0, 1])
    values, losses = score(task.network, starts, inputs, targets)
    outputs = predictions(task.network, starts, inputs)[..., 0].double()
    truth = targets[:, 0].double()
    expected = 1 - (outputs - truth).square().sum(1) / (truth - truth.mean()).square().sum()
    assert torch.allclose(values, expected, atol=1e-5)
    assert torch.allclose(losses, (outputs - truth).square().mean(1), atol=1e-5)
    mean, deviation = task.data.target_map()
    assert mean.item() == pytest.approx((40 * x[task.data.splits().indices["train"], 0] + 7).mean(), abs=1e-3)
    assert task.inputs["targets"]["deviation"] == [pytest.approx(deviation.item())]


def test_losses_and_metrics_of_ones_own_are_asked_for_each_example():
    x, y = blobs()
    asked = []

    def hinge(outputs, targets):
        asked.append(outputs.shape)
        return F.relu(1 - (2 * targets - 1) * (outputs[:, 1] - outputs[:, 0]))

    task = synthnet.Task(module=net, data=synthnet.Data(x, y), loss=hinge)
    inputs, targets = task.examples("val")
    starts = task.draw_start("val", [0, 1, 2])
    _, losses = score(task.network, starts, inputs, targets)
    logits = task.network.logits(starts, inputs)
    assert asked == [(3 * len(inputs), 2)]
    assert torch.allclose(losses[1], hinge(logits[1], targets).double().mean())
    few = inputs[:3], targets[:3]
    own = task.objective.losses(logits[:, :3], few[1].expand(3, 3))
    assert torch.equal(own, task.objective.losses(logits[:, :3], few[1])), "as many nets as examples, each with its own"
    with pytest.raises(InputError, match=r"distil.labels=hard"):
        check_distil(DistilConfig(), Policy.create(PolicyConfig(), [task.arch], 0), task)
    wrong = synthnet.Task(module=net, data=synthnet.Data(x, y), loss=lambda outputs, targets: F.cross_entropy(outputs, targets))
    with pytest.raises(InputError, match="one number for each example"):
        score(wrong.network, starts, inputs, targets)
    broken = synthnet.Task(module=net, data=synthnet.Data(x, y), loss=lambda outputs, targets: outputs[:, 0] * math.nan)
    with pytest.raises(InputError, match="gave NaN"):
        score(broken.network, starts, inputs, targets)


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 2)

    def forward(self, x):
        return self.fc(x) + torch.randn(len(x), 2)


class Mixing(Random):
    def forward(self, x):
        return self.fc(x - x.mean(0))


def test_bad_problems_are_refused_in_one_line():
    x, y = blobs()
    nan = x.copy()
    nan[3, 1] = math.nan
    wrong = [
        (lambda: synthnet.Data(nan, y), "inputs hold NaN"),
        (lambda: synthnet.Data(x, y[:-1]), "do not go together"),
        (lambda: synthnet.Data(x, np.zeros(120, int)), "one class"),
        (lambda: synthnet.Data(x, np.arange(120)), "too many for classes"),
        (lambda: synthnet.Data(x, np.full(120, 2.5)), "nothing to learn"),
        (lambda: synthnet.Data(x.astype(str), y), "inputs should be numbers"),
        (lambda: synthnet.Data(x, [*y[:-1], "cat"]), "targets mix int64 and text"),
        (lambda: synthnet.Data(x[:, 0], y), "at least one dim"),
        (lambda: synthnet.Data(x, y, standardise="rows"), "standardise should be"),
        (lambda: synthnet.Data(x), "takes x and y"),
        (lambda: synthnet.Task(module=net()), "a function without arguments"),
        (lambda: synthnet.Task(module=net), "data=synthnet.Data"),
        (lambda: synthnet.Task(module=lambda: 1 / 0, data=synthnet.Data(x, y)), "ZeroDivisionError"),
        (lambda: synthnet.Task(module=lambda: 3, data=synthnet.Data(x, y)), "should return a torch.nn.Module"),
        (lambda: synthnet.Task(module=lambda: nn.Linear(4, 2), data=synthnet.Data(x, y)), "does not run on inputs of shape"),
        (lambda: synthnet.Task(module=lambda: net(3), data=synthnet.Data(x, y)), "puts out 3 numbers, data have 2 classes"),
        (lambda: synthnet.Task(module=Random, data=synthnet.Data(x, y)), "must not be random"),
        (lambda: synthnet.Task(module=Mixing, data=synthnet.Data(x, y)), "must not depend on one another"),
    ]
    for make, message in wrong:
        with pytest.raises(InputError, match=message):
            make()
    with pytest.warns(UserWarning, match="only 40 examples"):
        synthnet.Data(x[:40], y[:40])


def test_modules_and_state_dicts_go_in_and_come_back():
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    made = synthnet.synthesize(before)
    assert list(made) == list(before)
    assert synthnet.synthesize(module) is module
    assert all(torch.equal(made[name], value) for name, value in module.state_dict().items())
    inputs, labels = build_task("digits-mlp").examples("val")
    accuracy = (module(inputs).argmax(1) == labels).float().mean().item()
    assert accuracy > 0.9
    again = synthnet.load_policy("digits-mlp").synthesize(before)
    assert all(torch.equal(made[name], again[name]) for name in made)
    with pytest.raises(InputError, match="state dict of tensors"):
        synthnet.load_policy("digits-mlp").synthesize(3)


def test_twins_by_patience_and_strong_twins_are_found_once(cache, monkeypatch):
    x, y = blobs(200)
    task = synthnet.Task(module=net, data=synthnet.Data(x, y), name="sides")
    recipe = recipe_of(task)
    assert 1 <= recipe.epochs <= 200
    twins = grow_twins(task, task.draw_start("val", [0, 1]))
    assert score(task.network, twins, *task.examples("val"))[0].min() > 0.8
    strong = strong_recipe(task)
    assert strong.done
    assert 48 <= strong.tried <= 64
    assert strong.recipe.cosine
    monkeypatch.setattr("synthnet.tasks.recipes._try", lambda *_: pytest.fail("searched again"))
    assert strong_recipe(task) == strong


def test_a_problem_file_goes_wherever_a_task_does(problem, capsys):
    """init, sgd, synthesize by a policy of its own, evaluate; the outputs name no path."""
    assert run(capsys, "init", "--task", "mine.py:sides", "--count", "2", "-o", "starts")[0] == 0
    task = build_task("mine.py:sides")
    Policy.create(PolicyConfig(), [task.arch], 0).save("p.safetensors", record={"task": "sides", "inputs": task.inputs})
    code, _, err = run(capsys, "synthesize", "starts", "-o", "made", "--policy", "p.safetensors")
    assert code == 0, err
    code, out, err = run(capsys, "evaluate", "made", "--task", "mine.py:sides", "--split", "val", "--json")
    assert code == 0, err
    row = json.loads(out)["results"][0]
    assert {row["metric"], row["task"], row["n"]} == {"accuracy", "sides", 12}
    assert row["value"] == row["accuracy"]
    assert run(capsys, "sgd", "starts", "-o", "twins", "--task", "mine.py:sides")[0] == 0
    code, out, _ = run(capsys, "evaluate", "twins", "--task", "mine.py:sides", "--split", "val", "--json")
    assert min(r["accuracy"] for r in json.loads(out)["results"]) > 0.7
    metadata = synthnet.read_weights("made/sides-0000.safetensors").metadata
    assert "mine.py" not in json.dumps(metadata)
    assert json.loads(metadata["synthnet.policy"])["name"] == "p"
    assert json.loads(metadata["synthnet.inputs"])["classes"] == [0, 1]
    assert json.loads(metadata["synthnet.inputs"])["activations"] == ["tanh"]
    code, _, err = run(capsys, "evaluate", "made")
    assert code == 2
    assert "pass --task FILE.py:sides" in err
    for name, message in (
        ("mine.py:absent", "has no attribute"),
        ("mine.py:X", "should be a synthnet.Task"),
        ("no.py:a", "does not exist"),
    ):
        code, _, err = run(capsys, "init", "--task", name, "-o", "x.safetensors")
        assert (code, message in err, err.count("\n")) == (2, True, 1), err


ALONE = [
    "grpo.steps=[1]",
    "grpo.prompts=4",
    "grpo.num_generations=16",
    "grpo.signal_every=0",
    "grpo.val_seeds=4",
    "grpo.sigma=0.3",
]
ALONE += ["grpo.guard.kl=null", "grpo.guard.norm=null", "grpo.guard.drop=null", "lab.tensorboard=false", "threads=1"]


@pytest.mark.filterwarnings("default:.*collapsing")
@pytest.mark.filterwarnings("default:.*no group of any update")
def test_rewards_alone_teach_a_new_policy_without_data(problem, capsys):
    """Nets whose outputs should be small: from nothing, by GRPO on whole nets; and what evaluation says of it."""
    code, out, err = run(
        capsys, "grpo", "task=mine.py:calm", *ALONE, "grpo.loop.updates=40", "grpo.optim.learning_rate=1e-3", "run_dir=r"
    )
    assert code == 0, err
    rows = [json.loads(line) for line in Path("r/metrics.jsonl").read_text().splitlines()]
    scores = [row["val/score"] for row in rows if "val/score" in row]
    assert scores[-1] > scores[0]
    assert run(capsys, "init", "--task", "mine.py:calm", "-o", "w.safetensors")[0] == 0
    _, out, _ = run(capsys, "evaluate", "w.safetensors", "--task", "mine.py:calm", "--json")
    (row,) = json.loads(out)["results"]
    assert (row["metric"], row["n"], "loss" in row) == ("reward", 64, False)
    assert row["value"] < 0
    code, _, err = run(capsys, "grpo", "task=mine.py:broken", *ALONE, "run_dir=b")
    assert code == 2
    assert "gave NaN or infinity" in err
    code, _, err = run(capsys, "pairs", "task=mine.py:calm", "run_dir=p", "zoo_dir=z")
    assert code == 2
    code, _, err = run(capsys, "grpo", "task=mine.py:flat", *ALONE, "grpo.loop.updates=2", "run_dir=f")
    assert "no group of any update had a spread" in err


def test_a_search_ends_where_there_are_fewer_settings_than_it_draws(cache, monkeypatch):
    """Words and a loss of one's own leave 27 settings; it drew until it had 32."""
    x, y = blobs()
    words = synthnet.Data((x > 0).astype(int), y, standardise=False)
    module = lambda: nn.Sequential(nn.Embedding(2, 3), nn.Flatten(), nn.Linear(15, 2))  # noqa: E731
    loss = lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none")  # noqa: E731
    task = synthnet.Task(module=module, data=words, loss=loss, recipe=Recipe(2e-3, 64, 2))
    monkeypatch.setattr("synthnet.tasks.recipes._try", lambda task, base, setting: -abs(setting["rate"] - 3e-3))
    assert strong_recipe(task).tried >= 27


def test_a_recipe_that_was_found_for_one_loss_is_not_anothers(cache):
    x, y = blobs()
    losses = [lambda outputs, targets: outputs[:, 0] ** 2, lambda outputs, targets: outputs[:, 1] ** 4]
    tasks = [synthnet.Task(module=net, data=synthnet.Data(x, y), loss=loss, name="one") for loss in losses]
    remember(tasks[0], "twins", {"epochs": 3})
    assert recall(tasks[0], "twins") == {"epochs": 3}
    assert recall(tasks[1], "twins") is None


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(5, 5), nn.Linear(5, 5)
        self.two.weight, self.out = self.one.weight, nn.Linear(5, 2)

    def forward(self, x):
        return self.out(self.two(self.one(x)))


SAME = net()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"module": lambda: SAME}, "returns the same net each time"),
        ({"module": Tied}, "shares one weight as one.weight and two.weight"),
        ({"module": lambda: nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))}, "lazy layers"),
        ({"module": nn.Flatten}, "has no weights"),
        ({"recipe": {"epochs": 3}}, "Task.recipe should be a synthnet.Recipe"),
        ({"module": lambda: net(3)}, "task of yours: its module puts out 3 numbers"),
    ],
)
def test_parts_of_the_wrong_kind_are_named(parts, message):
    x, y = blobs()
    with pytest.raises(InputError, match=message):
        synthnet.Task(**{"module": net, "data": synthnet.Data(x, y), **parts})


def test_functions_of_ones_own_that_fail_are_named_whatever_they_raise():
    x, y = blobs()

    def leaving(outputs, targets):
        raise SystemExit(0)

    task = synthnet.Task(module=net, data=synthnet.Data(x, y), metric=leaving)
    with pytest.raises(InputError, match="the task's metric: SystemExit"):
        score(task.network, task.draw_start("val", [0]), *task.examples("val"))
    flat = synthnet.Task(module=net, data=synthnet.Data(x, y), loss=lambda outputs, targets: outputs.argmax(1) != targets)
    with pytest.raises(InputError, match="has no gradient with respect to outputs"):
        grow_twins(flat, flat.draw_start("val", [0]))
    words = synthnet.Task(module=net, reward=lambda nets, draw: "good", example=torch.zeros(1, 5))
    with pytest.raises(InputError, match=r"the reward of task .* fails"):
        words.mean_reward(words.draw_start("val", [0]), 1)
    nothing = synthnet.Task(module=net, data=synthnet.Data(x, y), start=lambda draw: 3)
    with pytest.raises(InputError, match=r"start should return a torch.nn.Module"):
        nothing.draw_start("val", [0])


def test_a_last_batch_of_one_is_no_batch_for_running_statistics():
    x, y = blobs(100)  # 65 to train on, in batches of 64
    task = synthnet.Task(
        module=lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)),
        data=synthnet.Data(x, y),
        recipe=Recipe(2e-3, 64, 3),
    )
    assert len(task.examples("train")[1]) % 64 == 1
    assert grow_twins(task, task.draw_start("val", [0, 1])).isfinite().all()


def test_a_reward_that_never_varies_is_said_after_ten_updates(tmp_path, monkeypatch):
    """Not only at the end of a run that may be long."""
    (tmp_path / "mine.py").write_text(PROBLEM)
    monkeypatch.chdir(tmp_path)
    flat = ["task=mine.py:flat", *ALONE, "backbone.dim=16", "backbone.depth=1", "grpo.prompts=2", "grpo.num_generations=4"]
    train = [*flat, "grpo.loop.updates=200", "run_dir=f"]
    with pytest.warns(UserWarning, match="Raise grpo.sigma"):
        interrupt_at(11, lambda: run_command("grpo", train), monkeypatch)
