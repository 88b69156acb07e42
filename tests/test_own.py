"""Problems of the user's own: tasks and data in Python, in problem files and in data files; any module, any measure."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

import synthnet
from synthnet.engine import Network, arch_of, by_shapes, predictions, score
from synthnet.errors import InputError
from synthnet.lab.book import Book
from synthnet.nets import Arch, UntraceableError, WeightSpec
from synthnet.policy import Policy, PolicyConfig, read_policy
from synthnet.tasks import build_task, grow_twins, recipe_of, strong_recipe
from synthnet.tasks.readers import problem_text, read_data
from test_cli import run

PROBLEM = """
import numpy as np
import synthnet
import torch
from torch import nn

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(120, 5)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] > 0).astype(int)

def net(): return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))
def sides(): return synthnet.Task(module=net, data=synthnet.Data(X, Y))
def calm():
    def returns(nets, draw):
        assert len(nets) == len(nets.weights["0.weight"])
        return -nets(torch.randn(16, 5, generator=draw)).square().mean((1, 2))
    return synthnet.Task(module=net, reward=returns, example=torch.zeros(1, 5))
def nan(nets, draw): return torch.full((len(nets),), float("nan"))
def broken(): return synthnet.Task(module=net, reward=nan, example=torch.zeros(1, 5))
def flat(): return synthnet.Task(module=net, reward=lambda nets, draw: torch.zeros(len(nets)), example=torch.zeros(1, 5))
"""


def blobs(n: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, 5)).astype(np.float32)
    return x, (x[:, 0] + x[:, 1] > 0).astype(int)


def net(n_out: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, n_out))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def problem(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(PROBLEM)


def test_splits_are_stratified_disjoint_and_fitted_on_train():
    x, y = blobs(400)
    labels = np.where(y == 1, "yes", "no")
    data = synthnet.Data(3 * x + 5, labels)
    inputs, targets, indices = data.splits()
    assert {name: len(part) for name, part in indices.items()} == {"train": 260, "reward": 20, "val": 40, "test": 80}
    assert len(torch.cat(list(indices.values())).unique()) == 400
    train = inputs[indices["train"]]
    assert train.mean(0).abs().max() < 1e-5
    assert (train.std(0) - 1).abs().max() < 1e-5
    assert data.classes == ["no", "yes"]
    assert torch.equal(targets, torch.from_numpy((labels == "yes").astype(int)))
    for part in indices.values():
        assert abs(targets[part].float().mean() - y.mean()) < 0.05, "as many of each class"
    assert not torch.equal(indices["test"], data.splits(1).indices["test"])


def test_parts_that_are_apart_stay_apart_and_whole_numbers_stay_whole():
    x, y = blobs(200)
    data = synthnet.Data(train=(x[:150], y[:150]), test=(x[150:], y[150:]))
    indices = data.splits().indices
    assert sorted(indices["test"].tolist()) == list(range(150, 200))
    assert {name: len(part) for name, part in indices.items()} == {"train": 122, "reward": 9, "val": 19, "test": 50}
    words = synthnet.Data(np.arange(300).reshape(100, 3) % 7, y[:100], standardise=False)
    assert words.splits().inputs.dtype == torch.int64
    assert synthnet.Data(x, y).key == synthnet.Data(x.copy(), y.copy()).key != synthnet.Data(x + 1, y).key


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


class Recurrent(nn.Module):
    def __init__(self, kind=nn.GRU, **settings):
        super().__init__()
        self.rnn = kind(3, 4, batch_first=True, **settings)
        self.fc = nn.Linear(8 if settings.get("bidirectional") else 4, 2)

    def forward(self, x):
        return self.fc(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize("settings", [{}, {"num_layers": 2}, {"bidirectional": True}, {"bias": False}])
def test_a_recurrent_unit_is_one_unit_through_all_gates_and_time(kind, settings):
    torch.manual_seed(0)
    module, x = Recurrent(kind, **settings), torch.randn(6, 5, 3)
    network = Network(module, x[:2])
    assert set(network.symmetry.groups.values()) == {4}
    assert len(network.symmetry.groups) == 2 if settings.get("num_layers") or settings.get("bidirectional") else 1
    assert network.backends(x)[0] == "batched"
    flat = torch.stack([network.spec.flatten(Recurrent(kind, **settings).state_dict()) for _ in range(3)])
    expected = network.logits(flat, x, "loop")
    assert torch.allclose(network.logits(flat, x, "batched"), expected, atol=1e-5)
    moved = network.symmetry.permute(flat, network.symmetry.random(torch.Generator().manual_seed(1)))
    assert not torch.equal(moved, flat)
    assert torch.allclose(network.logits(moved, x), expected, atol=1e-5)


def test_an_architecture_of_ones_own_is_data_and_comes_back_bounded():
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 6), nn.Tanh(), nn.Linear(6, 3)
    )
    made = arch_of(module, torch.randn(4, 1, 8, 8))
    told = json.loads(json.dumps(made.to_dict()))
    back = Arch.from_dict(told)
    assert back == made
    assert made.activations == ["relu", "tanh"]
    net, symmetry = Network(module, torch.randn(2, 1, 8, 8)), back.symmetry()
    assert [(piece.tensor, piece.groups) for piece in symmetry.pieces] == [(p.tensor, p.groups) for p in net.symmetry.pieces]
    assert all(torch.equal(a.index, b.index) for a, b in zip(symmetry.pieces, net.symmetry.pieces, strict=True))
    assert symmetry.scalable == net.symmetry.scalable
    with pytest.raises(InputError, match=r"pass --task FILE.py:NAME"):
        back.skeleton()
    policy = Policy.create(PolicyConfig(), [back], 0)
    assert policy.layout(Network(None, None, back)).n_weights == made.spec().n_weights
    for key, value in (
        ("axes", [["0.weight", [[["evil", 4]]]]]),
        ("tensors", [["0.weight", [-1], "parameter", False]]),
        ("outputs", "x"),
    ):
        with pytest.raises(InputError, match="malformed"):
            Arch.from_dict({**told, "kwargs": {**told["kwargs"], key: value}})


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.a(x) if x.sum() > 1e9 else torch.relu(self.a(x)))


def test_what_cannot_be_traced_says_so_and_has_no_unit_groups():
    arch = arch_of(Branching(), torch.randn(4, 5))
    assert "untraced" in arch.kwargs
    with pytest.raises(UntraceableError, match="Branching"):
        Arch.from_dict(arch.to_dict()).symmetry()


def test_names_are_matched_by_shape_where_one_assignment_fits():
    ours = WeightSpec.of_module(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    numbered = {
        f"layers.{2 * k}.{n}": torch.zeros(s) for k, w in ((1, 3), (5, 4)) for n, s in (("weight", (4, w)), ("bias", (4,)))
    }
    theirs = WeightSpec.of_tensors({**numbered, "head.weight": torch.zeros(2, 4), "head.bias": torch.zeros(2)})
    found = by_shapes(ours, theirs, "it")
    assert found["0.bias"], found["2.bias"] == ("layers.2.bias", "layers.10.bias")
    assert found["4.weight"] == "head.weight"
    named = {"left.weight": torch.zeros(4, 4), "right.weight": torch.zeros(4, 4)}
    with pytest.raises(InputError, match=r"left.weight and right.weight could be exchanged"):
        by_shapes(WeightSpec.of_tensors({"a": torch.zeros(4, 4), "b": torch.zeros(4, 4)}), WeightSpec.of_tensors(named), "it")
    assert by_shapes(ours, WeightSpec.of_tensors(named), "it") is None


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


def test_tables_arrays_and_images_are_read_and_bad_ones_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = blobs(60)
    rows = ["a,b,c,d,e,kind", *(",".join([*map(str, row), "yes" if label else "no"]) for row, label in zip(x, y, strict=True))]
    Path("t.csv").write_text("\n".join(rows) + "\n")
    assert read_data("t.csv").classes == ["no", "yes"]
    assert read_data("t.csv", "kind").key == read_data("t.csv").key
    np.savez("a.npz", x=x, y=y)
    assert read_data("a.npz").n_targets == 2
    from PIL import Image

    for name, shade in (("dark", 20), ("light", 220)):
        Path("pictures", name).mkdir(parents=True)
        for number in range(30):
            Image.new("L", (8, 8), shade + number % 10).save(f"pictures/{name}/{number}.png")
    assert read_data("pictures").shape == (1, 8, 8)
    assert read_data("pictures").classes == ["dark", "light"]
    assert "nn.Conv2d(1, 8, 3" in problem_text(Path("pictures"), "pictures", None, None)
    Path("w.csv").write_text("a,b\n1,2\nred,3\n")
    np.savez("b.npz", z=x)
    Path("bad", "c").mkdir(parents=True)
    Path("bad/c/1.png").write_text("no image")
    wrong = [
        (["t.csv", "--target", "price"], "has no column 'price'"),
        (["w.csv"], "holds 'red' where a number belongs"),
        (["b.npz"], "should hold x and y"),
        (["bad"], "no image that can be read"),
        (["nothing.csv"], "does not exist"),
        (["a.npz", "--target", "x"], "names a column of a .csv"),
    ]
    for arguments, message in wrong:
        code, _, err = run(capsys, "learn", *arguments)
        assert (code, message in err, err.count("\n")) == (2, True, 1), err


@pytest.mark.slow
@pytest.mark.filterwarnings("default:.*collapsing")
def test_learn_makes_a_policy_its_card_and_its_report_and_goes_on(problem, capsys):
    code, out, err = run(capsys, "learn", "mine.py:sides", "--minutes", "0.6", "-o", "sides.safetensors", "--json", "threads=1")
    assert code == 0, err
    report = json.loads(out)
    assert report["steps"]["1"]["accuracy"]["mean"] > report["start"]["mean"] + 0.2
    assert {"sgd_twins", "strong_twins", "cost"} <= set(report)
    decided = [entry["what"] for entry in report["decisions"]]
    assert decided[:5] == ["twins", "strong twins", "teachers", "pace", "length of beginning 1"]
    assert decided[-1] == "end"
    assert "| strong twins |" in Path("sides.md").read_text()
    assert Path("runs/learn-sides-0/report.png").exists()
    policy = read_policy("sides.safetensors")
    assert policy.archs[0].module is None, "what is saved is data"
    assert policy.record["inputs"]["classes"] == [0, 1]
    code, out, _ = run(capsys, "learn", "mine.py:sides", "--minutes", "0.6", "--json", "threads=1")
    assert json.loads(out)["decisions"] == report["decisions"], "the same command reads what was decided"
    run(capsys, "init", "--task", "mine.py:sides", "-o", "w.safetensors")
    save_file(load_file("w.safetensors"), "bare.safetensors")
    assert run(capsys, "synthesize", "bare.safetensors", "-o", "o.safetensors", "--policy", "sides.safetensors")[0] == 0
    code, _, err = run(capsys, "fork", "runs/learn-sides-0/begin-1", "distil.nets=4")
    assert code == 2
    assert "uses code of yours" in err


@pytest.mark.slow
@pytest.mark.filterwarnings("default:.*collapsing")
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch, cache, request):
    """Its cells in order, in less time than it says."""
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((request.config.rootpath / "docs" / "your-own-net.ipynb").read_text())
    space: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]).replace("minutes=1", "minutes=0.5, threads=1"), space)
    assert space["accuracy"] > 0.7


def test_running_variances_stay_positive_whatever_a_policy_does():
    """A negative one gave NaN, and guards rolled back for ever."""
    module = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    arch = arch_of(module, torch.randn(4, 5))
    policy = Policy.create(PolicyConfig(), [arch], 0)
    for parameter in policy.trunk.head.parameters():
        nn.init.normal_(parameter, std=20.0)
    made = policy.synthesize(module.state_dict(), steps=3)
    assert made["1.running_var"].min() > 0
    assert made["1.running_mean"].min() < 0, "nothing else is touched"
    module.load_state_dict(made)
    assert torch.isfinite(module.eval()(torch.randn(8, 5))).all()


def test_decisions_are_read_again_in_order_whatever_the_clock_says(tmp_path):
    book = Book(tmp_path / "decisions.jsonl", 0.0)
    assert not book.more("race 3", 0.5), "no time at all"
    assert book.decide("pace", lambda: (2, "measured")) == 2
    assert not book.goes_on
    assert book.decide("end", lambda: ("leg-1", "the time is used up")) == "leg-1"
    again = Book(tmp_path / "decisions.jsonl", 1e9)
    assert again.more("pace", 0.5)
    assert not again.more("race 3", 0.5), "it did not come then"
    assert again.decide("pace", lambda: pytest.fail("found again")) == 2
    assert not again.goes_on
    with pytest.raises(InputError, match="decided 'end' where 'leg 1' comes"):
        again.decide("leg 1", lambda: (0, ""))
