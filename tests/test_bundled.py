"""The policies that ship: small, described, and as good as their cards say (on val, with few seeds)."""

import pytest
import torch

from synthnet.bundled import POLICY_DIR, find_policy, inputs_of, policies, policy_record
from synthnet.errors import InputError
from synthnet.policy.file import read_policy
from synthnet.policy.rollout import synthesize_flat
from synthnet.tasks import Source, build_task, data, judge
from synthnet.tasks.problems.one import MEMBERS
from synthnet.tasks.twins import grow_twins

FAMILIES = {
    "mnist5k-cnn-family": {"channels": [7, 13]},
    "digits-mlp-family": {"hidden": [28]},
    "mnist-simplecnn-family": {"channels": [7, 13]},
    "mnist-simplemlp-family": {"hidden": [40]},
    "mnist-targetcnn-family": {"channels": [5, 11], "hidden": [20]},
    "digits-resnet-family": {"width": 20},
    "mnist5k-cnn-family-depths": {"channels": [10, 12, 14], "pools": 2},  # a depth it has never seen
}


FOR_ALL = "one"  # the policy for unlike nets
CONTROL = {  # and what every net must earn at least, as simulated
    "cartpole": 450,
    "acrobot": -130,
    "mountain-car": -130,
    "pendulum": -320,
    "cartpole-plants": 350,
    "cartpole-targets": 150,
    "acrobot-plants": -180,
}
FROM_NOTHING = (
    FOR_ALL,
    "digits-mlp",
    "digits-mnist8",
    "digits-resnet",
    "digits-turned",
    "digits-vit",
    "digits-yes",
    "mnist5k-mlp",
    "mnist5k-yes",
)


def task_of(name):
    """The task of a family's policy, with an architecture that it was not trained on."""
    return build_task(name.partition("-family")[0], **FAMILIES[name])


def test_each_task_has_its_policy_and_widths_between_have_a_familys():
    assert {"digits-mlp", "mnist5k-mlp", "digits-vit", *FAMILIES} <= set(policies())
    for name in ("digits-mlp", "mnist5k-mlp", "digits-vit"):
        assert find_policy(build_task(name).arch)[0] == name
    for task, name in (("digits-mlp", "digits-mlp"), ("mnist8-mlp", "digits-mnist8"), ("elsewhere", "digits-mlp")):
        assert find_policy(build_task("digits-mlp").arch, task)[0] == name
    for name in FAMILIES:
        assert find_policy(task_of(name).arch)[0] == name


def test_one_shipped_policy_is_a_perceiver_with_experts():
    backbones = [read_policy(POLICY_DIR / f"{name}.safetensors").config.backbone for name in policies()]
    assert any(b["name"] == "perceiver_io" and b["experts"] >= 2 for b in backbones)


@pytest.mark.parametrize("name", policies())
def test_a_shipped_policy_keeps_its_card(name):
    path = POLICY_DIR / f"{name}.safetensors"
    assert path.stat().st_size <= 5e6
    policy, card = read_policy(path), path.with_suffix(".md").read_text()
    stages = [stage["stage"] for stage in policy.record["stages"]]
    if name in CONTROL:
        assert set(stages) == {"grpo"}, "a new policy, and returns alone"
        return
    assert stages[0] == ("distil" if name in FROM_NOTHING else "pairs"), "what the README says of its first stage"
    changing = [stage for stage in stages if stage != "critic"]  # the critic stage leaves the policy as it is
    assert changing[-1] == ("grpo" if name == "mnist5k-mlp-by-rewards" else "distil"), "what the README says of its last stage"
    assert (policy.critic is not None) == ("critic" in stages)
    for stage in policy.record["stages"]:
        assert " ".join(stage["command"]) in card
        assert "seed" in stage or "stopped_at_update" in stage


def works(policy, task, share):
    """At its best K at least this share of its twins, every net its own; start weights are the control that must fail."""
    seeds, examples = list(range(5000, 5012)), task.examples("val")
    start, spec = task.draw_start("heldout", seeds), task.draw_spec("heldout", seeds)
    made = synthesize_flat(policy, start, policy.record["best_k"], task.network, spec)[:, -1]
    accuracy, twins = (judge(task, w, *examples, spec)[0].mean() for w in (made, grow_twins(task, start, spec=spec)))
    assert accuracy >= share * twins
    assert judge(task, start, *examples, spec)[0].mean() < (0.3 if task.variants is None else 0.7)
    assert torch.pdist(made).min() > 1


@pytest.mark.parametrize("name", sorted(CONTROL))
def test_a_shipped_controller_works_on_unseen_seeds(name):
    """As simulated; each net its own, and far above what it began as."""
    policy, task = read_policy(POLICY_DIR / f"{name}.safetensors"), build_task(name)
    seeds = list(range(5000, 5012))
    start, spec = task.draw_start("heldout", seeds), task.draw_spec("heldout", seeds)
    made = synthesize_flat(policy, start, policy.record["best_k"], task.network, spec)[:, -1]
    before, after = (task.mean_reward(nets, 2, spec) for nets in (start, made))
    assert after.min() > CONTROL[name]
    assert after.mean() > before.mean() + 25
    assert torch.pdist(made).min() > 0.5


def test_the_policy_for_all_comes_after_those_of_one_net_or_family():
    policy = read_policy(POLICY_DIR / f"{FOR_ALL}.safetensors")
    assert len(policy.archs) >= 11
    assert policy.config.backbone["experts"] >= 2
    for arch in policy.archs:
        chosen, others = find_policy(arch)
        assert [chosen, *others][-1] == FOR_ALL
    assert find_policy(build_task("digits-mlp").arch)[0] == "digits-mlp"
    assert find_policy(build_task("mnist5k-cnn").arch)[0] == "mnist5k-cnn-family"
    with pytest.raises(InputError, match="no bundled policy for the task mnist5k-mlp"):
        find_policy(build_task("digits-mlp").arch, "mnist5k-mlp")  # it knows the net, for another task


@pytest.mark.parametrize("name", sorted(set(MEMBERS) - {"digits-vit"}))
@pytest.mark.slow
def test_the_policy_for_all_works_on_each_of_its_nets(name):
    works(read_policy(POLICY_DIR / f"{FOR_ALL}.safetensors"), build_task(FOR_ALL, nets=[name]).members[0], 0.93)


@pytest.mark.parametrize("name", sorted(set(policies()) - {FOR_ALL, *CONTROL}))
@pytest.mark.slow
def test_a_shipped_policy_works_on_unseen_seeds(name):
    policy = read_policy(POLICY_DIR / f"{name}.safetensors")
    for task in policy.data_sets or [policy.record["task"]]:
        share = 0.97 if len(policy.archs) > 1 or name == "digits-vit" else 0.98  # val has 100 images: one is a point
        works(policy, build_task(task).with_arch(policy.archs[0]), share)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.slow
def test_a_shipped_family_works_on_a_net_it_has_never_seen(name):
    task = task_of(name)
    policy = read_policy(POLICY_DIR / f"{name}.safetensors")
    assert task.arch not in policy.archs
    works(policy, task, 0.97)


def test_what_the_inputs_of_a_shipped_policy_are_is_what_its_task_says_and_its_data_have():
    """inputs.json is read where no data may be opened."""
    for name in set(policies()) - {"digits-mnist8", FOR_ALL}:
        record = policy_record(name)["record"]
        task = build_task(record["task"]).members[0]
        assert inputs_of(name, record) == task.inputs, name
    for source in ("digits", "mnist5k"):
        images, _ = data.load(source)
        train, told = images[data.split_indices(source, len(images), 0)["train"]], Source(source).inputs()
        assert told["subtracted"] == pytest.approx(train.mean().item(), abs=1e-4)
        assert told["divided_by"] == pytest.approx(train.std().item(), abs=1e-4)
