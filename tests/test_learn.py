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
from synthnet.lab.presets import BY_EXAMPLE, BY_LAYER, BY_NET, by_rewards_of
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
