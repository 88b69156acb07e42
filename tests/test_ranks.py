"""Two processes on one policy: the gradient, the losses and the patches of one process."""

import json
import os
import subprocess
import sys

import pytest

from conftest import make_policy, wait_for
from synthnet.errors import InputError
from synthnet.lab.fork import run_command
from synthnet.runs import ranks
from synthnet.runs.journal import append, records

pytestmark = pytest.mark.filterwarnings("ignore:outputs of different seeds")
SMALL = ["task=digits-mlp", "task.hidden=[8]", "threads=1", "lab.tensorboard=false"]
GRPO = [
    *SMALL, "grpo.prompts=4", "grpo.num_generations=4", "grpo.steps=[1,2]", "reward.batch=64", "reward.gain=0.2",
    "grpo.val_seeds=2", "grpo.signal_every=3",
    "grpo.loop.updates=20", "grpo.loop.validate_every=10", "grpo.scale_rewards=batch",
    "reward.step_cost=0.1", "grpo.guard.norm=null",
]  # fmt: skip
BACKBONE = ["backbone.dim=16", "backbone.depth=1", "backbone.heads=2"]


def _two(stage, settings):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "synthnet.cli", stage]
    command, environment = [*command, *settings], {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _rows(folder):
    return [row for row in records(folder / "metrics.jsonl") if "loss" in row]


@pytest.fixture
def start(tmp_path, tiny):
    make_policy(tiny).save(tmp_path / "p.safetensors")
    return f"policy_from={tmp_path / 'p.safetensors'}"


def test_alone_nothing_is_exchanged():
    assert (ranks.world(), ranks.rank(), ranks.first()) == (1, 0, True)
    assert ranks.own_share(7, "x") == slice(0, 7)
    assert ranks.average({"a": 1.5, "b": "text"}) == {"a": 1.5, "b": "text"}
    assert ranks.told([{"a": 1}]) == [{"a": 1}]


def test_shares_must_be_equal(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "2")
    assert ranks.own_share(9, "grpo.prompts") == slice(6, 9)
    with pytest.raises(InputError, match=r"grpo.prompts must be a multiple of the 3 processes, got 8"):
        ranks.own_share(8, "grpo.prompts")


@pytest.mark.slow
def test_grpo_on_two_processes_is_grpo_on_one(start, tmp_path):
    """Rollouts with a K of their own, rewards scaled over the whole batch: a share scaled by itself breaks this."""
    run_command("grpo", [*GRPO, start, f"run_dir={tmp_path / 'one'}"])
    two = _two("grpo", [*GRPO, start, f"run_dir={tmp_path / 'two'}"])
    said, _ = two.communicate(timeout=200)
    assert two.returncode == 0, said
    one, both = _rows(tmp_path / "one"), _rows(tmp_path / "two")
    assert [row["update"] for row in both] == list(range(1, 21))
    assert both[0]["grad_norm"] == pytest.approx(one[0]["grad_norm"], rel=1e-5)
    assert both[0]["reward"] == pytest.approx(one[0]["reward"], rel=1e-5)
    assert both[-1]["reward"] == pytest.approx(one[-1]["reward"], abs=1e-3)
    scores = [
        [row["val/score"] for row in records(tmp_path / name / "metrics.jsonl") if "val/score" in row]
        for name in ("one", "two")
    ]
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)
    assert json.loads((tmp_path / "two" / "run.json").read_text())["outcome"] == "done"


@pytest.mark.slow
def test_pairs_and_distil_on_two_processes_are_those_on_one(tmp_path):
    zoo = f"zoo_dir={tmp_path / 'zoo'}"
    run_command("zoo", [*SMALL, "zoo.runs=8", "zoo.heldout=4", "zoo.shard=8", f"run_dir={tmp_path / 'zoo'}"])
    pairs = [*SMALL, *BACKBONE, zoo, "pairs.batch=8", "pairs.val_seeds=2", "pairs.loop.updates=20"]
    distil = [*SMALL, zoo, "distil.nets=4", "distil.val_seeds=2", "distil.loop.updates=20", "distil.images=64"]
    made = run_command("pairs", [*pairs, f"run_dir={tmp_path / 'p1'}"])
    source = f"policy_from={made}"
    run_command("distil", [*distil, source, f"run_dir={tmp_path / 'distil1'}"])
    for stage, settings in (("pairs", pairs), ("distil", [*distil, source])):
        process = _two(stage, [*settings, f"run_dir={tmp_path / stage}2"])
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 0, said
    for one, two in (("p1", "pairs2"), ("distil1", "distil2")):
        alone, both = _rows(tmp_path / one), _rows(tmp_path / two)
        assert both[0]["grad_norm"] == pytest.approx(alone[0]["grad_norm"], rel=1e-5)
        assert both[-1]["loss"] == pytest.approx(alone[-1]["loss"], rel=1e-3)


@pytest.mark.slow
def test_a_patch_reaches_both_processes_before_the_same_update_and_a_stop_ends_both(start, tmp_path):
    """A rank that took the patch an update later would go on with another learning rate, and the gradients' average would
    drift."""
    run = tmp_path / "run"
    long = [part for part in GRPO if not part.startswith("grpo.loop.updates")]
    process = _two("grpo", [*long, "grpo.loop.updates=100000", start, f"run_dir={run}"])
    wait_for(lambda: len(_rows(run)) >= 3, process)
    append(
        run / "patches.jsonl", {"kind": "patch", "values": {"reward.gain": 0.5, "grpo.prompts": 3}}
    )  # 3 prompts, 2 processes
    append(run / "patches.jsonl", {"kind": "patch", "values": {"reward.gain": 0.5, "grpo.prompts": 6}, "over": 4})
    wait_for(lambda: any(row.get("knob/grpo.prompts") == 6 for row in _rows(run)), process)
    append(run / "patches.jsonl", {"kind": "stop"})
    process.communicate(timeout=120)
    applied = records(run / "applied.jsonl")
    assert [entry["kind"] for entry in applied] == ["refused", "patch", "stop"]
    assert "multiple of the 2 processes" in applied[0]["reason"]
    evaluations = [row["evaluations"] for row in _rows(run) if "knob/grpo.prompts" in row]
    assert set(evaluations) == {12}  # six prompts of four, half of them on each process
    assert json.loads((run / "run.json").read_text())["outcome"] == "stopped"
