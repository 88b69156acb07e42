"""One policy for unlike nets: members drawn by what they lack, experts balanced over time."""

import math

import pytest
import torch
from safetensors.torch import load_file

from conftest import interrupt_at
from synthnet.lab.fork import run_command
from synthnet.policy import read_policy
from synthnet.train.distil import DistilConfig, next_member, note_loss


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:outputs of different seeds")
def test_unlike_nets_are_learned_by_one_policy_with_experts_and_resumed_exactly(tmp_path, monkeypatch):
    """Two nets of task one, drawn by what they lack; the running means of losses and loads survive an interruption."""
    base = ["task=one", "task.nets=[digits-mlp,digits-mlp-2]", "threads=1", "backbone.dim=16", "backbone.heads=2",
            "backbone.depth=1", "backbone.data=true", "backbone.experts=2", "backbone.balance_by=time", "distil.labels=hard",
            "distil.members=lacking", "distil.standardised=2", "distil.nets=3", "distil.images=16", "distil.val_seeds=2",
            "distil.apart=1", "distil.loop.updates=6", "distil.loop.validate_every=3", "distil.loop.checkpoint_every=2",
            "lab.tensorboard=false"]  # fmt: skip
    whole, split = tmp_path / "whole", tmp_path / "split"
    run_command("distil", [*base, f"run_dir={whole}"])
    interrupt_at(4, lambda: run_command("distil", [*base, f"run_dir={split}"]), monkeypatch)
    run_command("distil", [*base, f"run_dir={split}"])
    first, second = (load_file(path / "policy.safetensors") for path in (whole, split))
    assert all(torch.equal(first[name], second[name]) for name in first)
    policy = read_policy(whole / "policy.safetensors")
    assert [arch.label for arch in policy.archs] == ["mlp-64-32-10", "mlp-64-24-24-10"]
    usage = next(value for name, value in policy.state_dict().items() if name.endswith("usage"))
    assert usage.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert usage.unique().numel() > 1


def test_the_member_that_lacks_most_has_the_most_turns():
    config, state = DistilConfig(members="lacking"), {"update": 0}
    for turn, loss in enumerate((3.0, 1.0, 0.0)):
        assert next_member({**state, "update": turn}, config, 3, 0) == turn
        note_loss(state, turn, loss)
    turns = [next_member({**state, "update": update}, config, 3, 0) for update in range(3, 803)]
    assert turns.count(2) == 0
    assert 0.7 < turns.count(0) / 800 < 0.8
    note_loss(state, 1, 11.0)
    assert state["losses"]["1"] == pytest.approx(0.9 * 1.0 + 0.1 * 11.0)
    note_loss(state, 1, math.inf)
    assert state["losses"]["1"] == pytest.approx(2.0)


def test_a_loss_that_is_no_number_leaves_the_chances_as_they_were():
    state = {"update": 5}
    note_loss(state, 0, math.nan)
    assert state["losses"] == {}
    for turn in range(2):
        note_loss(state, turn, 1.0)
    note_loss(state, 0, math.nan)
    assert next_member(state, DistilConfig(members="lacking"), 2, 0) in (0, 1)
