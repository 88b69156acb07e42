"""Distil: with what it begins, what its forces cost, and how long logits are whitened."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from conftest import COLLAPSE, SMALL, make_policy, setup_at
from synthnet.config import compose
from synthnet.engine import shuffled
from synthnet.errors import InputError
from synthnet.lab.fork import run_command
from synthnet.policy.file import read_policy
from synthnet.policy.rollout import rollout
from synthnet.runs.journal import records
from synthnet.stages import first_policy
from synthnet.tasks import build_task
from synthnet.train.distil import DistilConfig, Forces, note_lead, still_whitened
from synthnet.train.pairs import PairsConfig


@COLLAPSE
@pytest.mark.slow
def test_distil_learns_from_warped_images(zoo_dir, tmp_path, tiny):
    """Breaks if the stage forgets distil.warp: the first update's loss is then that of the images as they are."""
    make_policy(tiny).save(tmp_path / "p.safetensors")
    quick = ["distil.labels=hard", "distil.nets=4", "distil.val_seeds=4", "distil.loop.updates=1", f"zoo_dir={zoo_dir}"]
    losses = []
    for warp in (0, 0.3):
        out = tmp_path / f"warp-{warp}"
        run_command(
            "distil", [*SMALL, *quick, f"distil.warp={warp}", f"policy_from={tmp_path / 'p.safetensors'}", f"run_dir={out}"]
        )
        rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        losses += [row["target_loss"] for row in rows if "target_loss" in row]
    assert len(losses) == 2 and abs(losses[0] - losses[1]) > 1e-3
    for wrong in ("-0.1", "11", "inf"):
        with pytest.raises(InputError, match=r"distil\.warp must lie in 0 to 10"):
            run_command("distil", [*SMALL, *quick, f"distil.warp={wrong}", f"policy_from={tmp_path / 'p.safetensors'}"])


def test_distil_begins_with_a_new_policy_where_it_first_sees_standardised_logits(zoo_dir, tmp_path):
    """The same as from a file of that new policy, bit for bit; without, it would lead nowhere and is refused."""
    quick = ["distil.loop.updates=2", "distil.nets=2", "distil.images=32", "distil.val_seeds=2", "distil.optim.warmup=0"]
    base = [*SMALL, *quick, f"zoo_dir={zoo_dir}"]
    made = run_command("distil", [*base, "distil.standardised=2", f"run_dir={tmp_path / 'new'}"])
    config = compose(base)
    new = first_policy(config, config.build_task(), setup_at(tmp_path))
    new.save(tmp_path / "new.safetensors")
    same = run_command(
        "distil", [*base, "distil.standardised=2", f"policy_from={tmp_path}/new.safetensors", f"run_dir={tmp_path / 'old'}"]
    )
    first, second = load_file(made), load_file(same)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], value) for name, value in new.state_dict().items()), "it must have learned"
    assert read_policy(made).record["task"] == "digits-mlp"
    with pytest.raises(InputError, match=r"distil\.standardised=N"):
        run_command("distil", [*base, f"run_dir={tmp_path / 'none'}"])


def test_a_gradient_flows_through_the_graded_steps_only(tiny, policy):
    start = tiny.draw_start("zoo", [0, 1])

    def gradient(graded):
        policy.zero_grad()
        rollout(policy, start, 3, tiny.network, graded=graded)[-1].square().sum().backward()
        return policy.trunk.steps_left.table.weight.grad.abs().sum(1)

    assert (gradient(None)[:3] > 0).all(), "steps left 1, 2 and 3 are all told"
    assert gradient(1)[0] > 0
    assert not gradient(1)[1:].any()


def test_whitening_ends_for_a_member_once_its_losses_lead_somewhere():
    """By the running mean of its own; one that has led is whitened no more, and none is after the last such update."""
    config, state = DistilConfig(standardised=10, leads=0.5), {"update": 3, "losses": {"0": 1.2, "1": 1.0}}
    for turn in (0, 1):
        note_lead(state, turn, config, 2.3)
    assert [still_whitened(state, turn, config) for turn in (0, 1, 2)] == [True, False, True]
    state["losses"] |= {"1": 9.0, "0": 1.0}
    note_lead(state, 1, config, 2.3)
    note_lead(state, 0, config, 1.9)
    assert [still_whitened(state, turn, config) for turn in (0, 1, 2)] == [True, False, True]
    note_lead(state, 0, config, 2.3)
    assert not still_whitened(state, 0, config)
    assert not still_whitened({**state, "update": 10}, 2, config)


def test_the_log_says_how_long_logits_were_whitened(tmp_path):
    settings = ["task=digits-mlp", "task.hidden=[8]", "distil.labels=hard", "distil.nets=2", "distil.images=32", "threads=1"]
    settings += ["distil.loop.updates=4", "distil.standardised=3", "distil.val_seeds=2", "lab.tensorboard=false"]
    run_command("distil", [*settings, f"run_dir={tmp_path / 'run'}"])
    told = [row["whitened"] for row in records(tmp_path / "run" / "metrics.jsonl") if "whitened" in row]
    assert told == [1.0, 1.0, 1.0, 0.0]


@COLLAPSE
def test_outliers_cost_what_nets_are_sure_of_and_shuffling_keeps_the_numbers(tmp_path):
    """Nets of zeros are sure of nothing; as logits grow, the cost is the gap between the mean logit and the largest, less the
    log of the number of classes. A trained policy is surer of shuffled digits than one that was trained against it."""
    images = torch.arange(24.0).view(4, 6)
    mixed = shuffled(images, torch.Generator().manual_seed(0))
    assert torch.equal(mixed.sort(1).values, images)
    assert len({tuple(row.tolist()) for row in mixed - images[:, :1]}) > 1, "each in an order of its own"
    task = build_task("digits-mlp", hidden=[8])
    forces = Forces(DistilConfig(), PairsConfig(), task.members, (), torch.device("cpu"), 0, None)
    nets, images = torch.zeros(2, task.network.spec.n_weights), task.examples("train")[0][:8]
    assert forces.outliers(0, nets, images, 0) == pytest.approx(0, abs=1e-6)
    nets[:, -1] = 100.0  # the last class's bias, whatever the image
    assert forces.outliers(0, nets, images, 0) == pytest.approx(0.9 * 100 - math.log(10), rel=1e-4)
    settings = ["task=digits-mlp", "task.hidden=[8]", "distil.labels=hard", "distil.nets=4", "distil.images=64", "threads=1"]
    settings += [
        "distil.standardised=5",
        "distil.loop.updates=30",
        "distil.val_seeds=2",
        "lab.tensorboard=false",
        "distil.optim.learning_rate=3e-3",
    ]
    sure = []
    for weight in (1e-6, 3.0):
        out = tmp_path / str(weight)
        run_command("distil", [*settings, f"distil.outliers={weight}", f"run_dir={out}"])
        sure.append([row["outliers"] for row in records(out / "metrics.jsonl") if "outliers" in row])
    assert sure[0][0] == sure[1][0]
    assert sure[1][-1] < 0.7 * sure[0][-1]


def test_outliers_are_for_classes(tmp_path):
    with pytest.raises(InputError, match=r"pass distil.outliers=0"):
        run_command(
            "distil",
            ["task=benchmarks/problems.py:diabetes", "distil.labels=hard", "distil.outliers=1", "distil.standardised=1"],
        )
