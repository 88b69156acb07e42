"""From nothing to a policy: `synthnet learn`, its decisions, its notebook."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from synthnet.engine import Network
from synthnet.errors import InputError
from synthnet.lab.book import Book
from synthnet.lab.learn import Course, prepare
from synthnet.lab.presets import BY_EXAMPLE, BY_LAYER, BY_NET, DISTIL, RATES, by_rewards_of
from synthnet.policy import read_policy
from synthnet.tasks import build_task
from test_cli import run


@pytest.mark.slow
@pytest.mark.filterwarnings("default:.*collapsing")
def test_learn_makes_a_policy_its_card_and_its_report_and_goes_on(problem, capsys):
    code, out, err = run(capsys, "learn", "mine.py:sides", "--minutes", "0.6", "-o", "sides.safetensors", "--json", "threads=1")
    assert code == 0, err
    report = json.loads(out)
    assert report["steps"]["1"]["accuracy"]["mean"] > report["start"]["mean"] + 0.2
    assert {"sgd_twins", "strong_twins", "cost"} <= set(report)
    decided = [entry["what"] for entry in report["decisions"]]
    first = ["twins", "strong twins", "pace of large updates", "large updates"]
    assert decided[:4] == first
    assert decided[-1] == "end"
    assert "| strong twins |" in Path("sides.md").read_text()
    assert Path("runs/learn-sides-0/report.png").exists()
    policy = read_policy("sides.safetensors")
    assert policy.archs[0].module is None, "what is saved is data"
    assert policy.record["inputs"]["classes"] == [0, 1]
    code, out, _ = run(capsys, "learn", "mine.py:sides", "--minutes", "0.6", "--json", "threads=1")
    assert json.loads(out)["decisions"] == report["decisions"], "the same command reads what was decided"
    other = ["run_dir=runs/other", "threads=1"]
    code, _, err = run(capsys, "learn", "mine.py:sides", "--minutes", "0.6", "-o", "sides.safetensors", *other)
    assert code == 2
    assert "this run did not make it" in err
    assert not Path("runs/other").exists()
    run(capsys, "init", "--task", "mine.py:sides", "-o", "w.safetensors")
    save_file(load_file("w.safetensors"), "bare.safetensors")
    assert run(capsys, "synthesize", "bare.safetensors", "-o", "o.safetensors", "--policy", "sides.safetensors")[0] == 0
    code, _, err = run(capsys, "fork", "runs/learn-sides-0/first-1", "distil.nets=4")
    assert code == 2
    assert "uses code of yours" in err


@pytest.mark.slow
@pytest.mark.filterwarnings("default:.*collapsing")
def test_rewards_alone_go_on_from_pairs(problem, capsys):
    short = ["threads=1", "zoo.runs=64", "pairs.loop.updates=15", "grpo.loop.updates=100"]
    code, out, err = run(capsys, "learn", "mine.py:sides", "--rewards-only", "--minutes", "20", "--json", *short)
    assert code == 0, err
    report = json.loads(out)
    decided = {entry["what"]: entry["value"] for entry in report["decisions"]}
    assert decided["outcome of GRPO"] > decided["outcome of pairs"]
    assert [stage["stage"] for stage in read_policy(report["policy"]).record["stages"]] == ["pairs", "grpo"]
    assert report["steps"]["1"]["accuracy"]["mean"] > report["start"]["mean"] + 0.2


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


def test_rewards_teach_by_example_layer_by_layer_or_by_whole_nets_as_the_net_allows():
    dense, image, gated = (
        build_task("digits-mlp").network,
        build_task("mnist5k-cnn").network,
        Network(nn.GRU(3, 4, batch_first=True), torch.zeros(2, 5, 3)),
    )
    assert by_rewards_of(dense, by_example=True) is BY_EXAMPLE
    assert by_rewards_of(image, by_example=True) is BY_LAYER
    assert by_rewards_of(gated, by_example=True) is BY_NET
    assert by_rewards_of(dense, by_example=False) is BY_NET
    assert BY_NET["grpo.rollout"] == "net"


class Scripted(Course):
    """A course whose stages cost nothing and come out as they are told: scores by folder, seconds of an update."""

    def told(self, scores: dict[str, float], leads: list[bool], pace: float = 1e-3) -> "Scripted":
        self.asked, self.scores, self.leading, self.seconds = {}, scores, iter(leads), pace
        return self

    def references(self):
        return {**DISTIL, "distil.input_noise": 0.3, "reward.input_noise": 0.3, "grpo.val_seeds": 32}

    def stage(self, folder, kind, settings, updates=None):
        self.asked[folder] = {**settings, **self.given}
        return Path(folder) / "policy.safetensors"

    def pace_of(self, path):
        assert path.parent.name.startswith("pace"), "of stages that may have had no update"
        return self.seconds, "as told"

    def score(self, path):
        return self.scores.get(path.parent.name, 0.0), "as told"

    def leads(self, path):
        return next(self.leading), "as told"


def scripted(tmp_path, given=None, seconds=600.0, rewards_only=False):
    return Scripted(build_task("digits-mlp"), dict(given or {}), tmp_path, Book(tmp_path / "d.jsonl", seconds), rewards_only)


def test_a_course_is_one_long_stage_and_one_on_more_steps_at_half_the_rate(tmp_path):
    course = scripted(tmp_path).told({"first-1": 0.9, "last": 0.95}, [True])
    assert course.run().parent.name == "last"
    assert list(course.asked) == ["pace-large", "first-1", "last"]
    first, last = course.asked["first-1"], course.asked["last"]
    assert (first["distil.steps"], first["k_max"], first["distil.nets"]) == ([1, 1, 2], 6, 16)
    assert first["distil.standardised"] > 0
    assert last["distil.steps"] == [1, 2, 2, 3, 4, 6]
    assert last["distil.optim.learning_rate"] == first["distil.optim.learning_rate"] / 2
    assert not any(name.startswith("backbone") or name in ("k_max", "distil.standardised") for name in last)
    assert course.book.entries[-1]["why"].startswith("all stages are done")


def test_a_course_tries_another_rate_and_keeps_what_is_better(tmp_path):
    course = scripted(tmp_path).told({"first-1": 0.1, "first-2": 0.6, "last": 0.5}, [False, True])
    assert course.run().parent.name == "first-2", "the last stage made it worse"
    assert course.asked["first-2"]["distil.optim.learning_rate"] == RATES[1]
    assert course.asked["last"]["distil.optim.learning_rate"] == RATES[1] / 2


def test_slow_updates_are_smaller_and_of_fewer_steps(tmp_path):
    course = scripted(tmp_path).told({"first-1": 0.9, "last": 0.95}, [True], pace=0.25)
    course.run()
    assert list(course.asked)[:2] == ["pace-large", "pace-small"]
    first, last = course.asked["first-1"], course.asked["last"]
    assert (first["distil.steps"], first["k_max"], first["distil.nets"], last["distil.steps"]) == ([1], 2, 4, [1, 2])


def test_what_was_asked_for_by_name_holds_throughout(tmp_path):
    given = {"distil.steps": [1, 4], "distil.optim.learning_rate": 5e-3, "backbone.dim": 32}
    course = scripted(tmp_path, given).told({"first-1": 0.9, "last": 0.95}, [False])
    course.run()
    assert [course.asked[name]["k_max"] for name in ("pace-large", "first-1")] == [4, 4]
    assert "first-2" not in course.asked, "it would be the same again"
    assert "backbone.edge_dim" not in course.asked["first-1"]
    alone = scripted(tmp_path / "r", {"grpo.steps": [1, 3]}, rewards_only=True).told({"pairs": 0.5, "grpo": 0.4}, [])
    alone.folder.mkdir()
    assert alone.run().parent.name == "pairs"
    assert alone.asked["pairs"]["k_max"] == 3
    assert alone.asked["grpo"]["grpo.steps"] == [1, 3]


def test_a_policy_to_begin_with_is_the_result_unless_it_got_better(tmp_path):
    given = {"policy_from": "digits-mlp"}
    course = scripted(tmp_path, given).told({"start": 0.97, "first-1": 0.9, "last": 0.96}, [True])
    assert course.run().parent.name == "start"
    assert course.asked["last"]["policy_from"] == "start/policy.safetensors"
    assert "k_max" not in course.asked["first-1"]


def test_a_course_without_time_says_so(tmp_path):
    course = scripted(tmp_path, seconds=1.0).told({"first-1": 0.9}, [True], pace=1.0)
    assert course.run().parent.name == "first-1"
    assert "last" not in course.asked
    assert course.book.entries[-1]["why"].startswith("the time is used up")


def test_a_zoo_that_settings_read_has_to_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="learn makes none: name one, zoo_dir="):
        prepare("digits-mlp", {"distil.labels": "soft"})
