"""The policies that ship: small, described, and as good as their cards say (on val, with few seeds)."""

import pytest
import torch

from synthnet.functional import score
from synthnet.policy import load_policy
from synthnet.population import grow_twins
from synthnet.rollout import synthesize_flat
from synthnet.synthesis import POLICY_DIR, bundled_policies, find_policy
from synthnet.tasks import build_task


def test_each_task_has_its_policy():
    assert {"digits-mlp", "mnist5k-mlp"} <= set(bundled_policies())
    for name in bundled_policies():
        assert find_policy(build_task(name).arch) == name


@pytest.mark.parametrize("name", bundled_policies())
def test_a_shipped_policy_keeps_its_card(name):
    path = POLICY_DIR / f"{name}.safetensors"
    assert path.stat().st_size <= 5e6
    policy, card = load_policy(path), path.with_suffix(".md").read_text()
    stages = [stage["stage"] for stage in policy.record["stages"]]
    assert stages[0] == "pairs"
    assert stages[-1] == "grpo"
    for stage in policy.record["stages"]:
        assert " ".join(stage["command"]) in card
        assert "seed" in stage


@pytest.mark.parametrize("name", bundled_policies())
def test_a_shipped_policy_works_on_unseen_seeds(name):
    """At its best K at least 98 % of its twins, every net its own; start weights are the control that must fail."""
    policy, task = load_policy(POLICY_DIR / f"{name}.safetensors"), build_task(name)
    inputs, labels = task.data("val")
    start = task.draw_start("heldout", list(range(5000, 5012)))
    made = synthesize_flat(policy, start, policy.record["best_k"], task.network)[:, -1]
    accuracy, twins = (score(task.network, w, inputs, labels)[0].mean() for w in (made, grow_twins(task, start)))
    assert accuracy >= 0.98 * twins
    assert score(task.network, start, inputs, labels)[0].mean() < 0.3
    assert torch.pdist(made).min() > 1
