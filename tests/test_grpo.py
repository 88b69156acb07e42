"""The mathematics of GRPO on weights, by value, with negative controls; settings that are refused."""

import math

import pytest
import torch

from conftest import make_policy
from synthnet.errors import InputError
from synthnet.grpo.config import GrpoConfig, check
from synthnet.grpo.objective import (
    GROUPINGS,
    LOSS_TYPES,
    check_mix,
    controlled,
    discounted,
    group_advantages,
    levelled,
    surrogate,
)
from synthnet.grpo.sample import mirrored
from synthnet.grpo.score import RewardConfig
from synthnet.policy.action import Alike, WeightGaussian
from synthnet.train.guards import GuardConfig


def _config(**changes):
    return GrpoConfig(**{"prompts": 3, "num_generations": 4, "steps": [1, 2], **changes})


def step_advantages(rewards, gains, grouping, mix, scale="group", discount=1.0):
    return GROUPINGS[grouping](rewards, gains, _config(mix=mix, scale_rewards=scale, discount=discount))


# --- advantages ----------------------------------------------------------------------------------------------------


def test_advantages_are_centred_and_scaled_within_each_group():
    rewards = torch.randn(5, 8, dtype=torch.float64)
    advantages = group_advantages(rewards)
    assert torch.allclose(advantages.mean(1), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(advantages.std(1), torch.ones(5, dtype=torch.float64), atol=1e-6)


def test_advantages_ignore_scale_shift_order_and_other_groups():
    rewards, order = torch.randn(3, 6), torch.randperm(6)
    base = group_advantages(rewards)
    assert torch.allclose(group_advantages(7 * rewards.double() + 3), base, atol=1e-6)
    assert torch.allclose(group_advantages(rewards[:, order]), base[:, order])
    changed = rewards.clone()
    changed[2] = 100 * torch.randn(6)
    assert torch.equal(group_advantages(changed)[:2], base[:2])


def test_equal_rewards_give_exactly_zero_and_tiny_spreads_still_count():
    assert not group_advantages(torch.full((2, 6), 0.1)).any()
    tiny = 0.5 + 1e-6 * torch.tensor([[0.0, 1, 2, 3]], dtype=torch.float64)
    assert group_advantages(tiny).std().item() == pytest.approx(1, rel=0.02)


def test_a_mirrored_pair_with_equal_rewards_contributes_nothing():
    noise = torch.randn(2, 5).repeat_interleave(2, 0) * torch.tensor([1.0, -1.0]).repeat(2)[:, None]
    advantages = group_advantages(torch.tensor([[1.0, 1.0, 2.0, 5.0]])).flatten()
    assert torch.allclose((advantages[:2, None] * noise[:2]).sum(0), torch.zeros(5, dtype=torch.float64), atol=1e-12)


def test_no_reward_gives_no_advantage_and_does_not_count():
    """NaN stands for 'no reward function applied': the others' advantages are those of the group without it."""
    rewards = torch.tensor([[0.1, 0.4, math.nan, 0.9], [math.nan] * 4])
    advantages = group_advantages(rewards)
    assert advantages[0, 2] == 0 and not advantages[1].any()
    assert torch.allclose(advantages[0, [0, 1, 3]], group_advantages(rewards[:1, [0, 1, 3]])[0])


def test_mirrored_pairs_take_the_curvature_out_of_a_linear_gradient():
    """R = g·ε + h·‖ε‖²: the mean of A·ε is (G − 1)/G·g for independent noise and g for mirrored; curvature cancels in pairs."""
    draw = torch.Generator().manual_seed(0)
    gradient, dims, group = torch.linspace(-1, 1, 6, dtype=torch.float64), 6, 4
    found = {}
    for paired in (False, True):
        noise = torch.randn((20000, group, dims), generator=draw, dtype=torch.float64)
        if paired:
            noise = mirrored(noise[:, ::2].flatten(0, 1)).view_as(noise)
        rewards = noise @ gradient + 3.0 * noise.square().sum(-1)
        advantages = rewards - rewards.mean(1, keepdim=True)  # unclipped, unscaled
        found[paired] = (advantages[..., None] * noise).mean((0, 1))
    assert (found[True] - gradient).abs().max() < 0.03
    assert (found[False] - gradient * (group - 1) / group).abs().max() < 0.15


@pytest.mark.parametrize("dims", [100, 1000])
def test_a_gradient_from_n_samples_points_as_far_right_as_the_law_says(dims):
    """cos² of the estimate and the gradient of a linear reward is n/(n + D + 1): what a batch of n rollouts is worth."""
    draw, n_samples, found = torch.Generator().manual_seed(0), 64, []
    for _ in range(200):
        gradient = torch.randn(dims, generator=draw, dtype=torch.float64)
        noise = torch.randn((n_samples, dims), generator=draw, dtype=torch.float64)
        estimate = ((noise @ gradient)[:, None] * noise).mean(0)
        found.append(torch.nn.functional.cosine_similarity(estimate, gradient, dim=0))
    assert torch.stack(found).mean().item() == pytest.approx(math.sqrt(n_samples / (n_samples + dims + 1)), rel=0.15)


def test_negative_controls_say_nothing_or_the_opposite():
    advantages = torch.randn(3, 8, 2, dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    assert torch.equal(controlled(advantages, "flip", draw), -advantages)
    assert (controlled(advantages, "constant", draw) == 1).all()
    shuffled = controlled(advantages, "random", draw)
    assert torch.equal(shuffled.sort(1).values, advantages.sort(1).values) and not torch.equal(shuffled, advantages)


# --- surrogate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient"),
    [(1.5, 1, 0.0), (1.1, 1, -1.1), (0.5, 1, -0.5), (0.5, -1, 0.0), (0.9, -1, 0.9), (9.0, -1, 9.0)],
)
def test_clip_table(ratio, advantage, gradient):
    """Gradients with respect to the log-probability at epsilon 0.2 / 0.28; swapping min and max breaks four rows."""
    log_ratio = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    surrogate(log_ratio, torch.tensor([float(advantage)]), 0.2, 0.28).sum().backward()
    assert log_ratio.grad.item() == pytest.approx(gradient, abs=1e-9)


def test_delta_bounds_the_branch_that_the_clip_leaves_open():
    """r = 9, A = −1: without delta the gradient is 9, with delta = 4 it is gone."""
    log_ratio = torch.tensor([[math.log(9.0)]], dtype=torch.float64, requires_grad=True)
    loss = surrogate(log_ratio, torch.tensor([-1.0]), 0.2, 0.28, delta=4.0).sum()
    loss.backward()
    assert loss.item() == pytest.approx(4.0)
    assert log_ratio.grad.item() == 0


def test_loss_types_agree_for_equal_lengths_and_weigh_short_rollouts_as_they_say():
    equal = torch.full((5,), 7.0)
    for loss_type in ("grpo", "bnpo", "dapo", "dr_grpo"):
        assert torch.allclose(LOSS_TYPES[loss_type](equal, 7), torch.full((5,), 1 / 35))
    lengths = torch.tensor([2.0, 6.0])
    assert LOSS_TYPES["grpo"](lengths, 10).tolist() == pytest.approx([1 / 4, 1 / 12])
    assert LOSS_TYPES["dapo"](lengths, 10).tolist() == pytest.approx([1 / 8, 1 / 8])
    assert LOSS_TYPES["dr_grpo"](lengths, 10).tolist() == pytest.approx([1 / 20, 1 / 20])


def test_the_normalized_ratio_spreads_by_the_shift_per_weight_whatever_the_width():
    """ℓ = ⟨ε,Δ⟩ − ½‖Δ‖² has a deviation that grows as √D; (ℓ + KL)/√D has δ. Leaving out the KL shifts it by −δ²√D/2."""
    shift, draw = 0.1, torch.Generator().manual_seed(0)
    for dims in (16, 4096):
        noise = torch.randn((4000, dims), generator=draw)
        log_ratio = (noise.sum(1) * shift - 0.5 * dims * shift**2)[:, None]
        kl = torch.full_like(log_ratio, 0.5 * dims * shift**2)
        level = levelled(log_ratio, kl, torch.tensor([float(dims)]), "normalized")
        assert level.std().item() == pytest.approx(shift, rel=0.06)
        assert abs(level.mean().item()) < 0.01
        assert torch.equal(levelled(log_ratio, kl, torch.tensor([float(dims)]), "token"), log_ratio)


# --- groupings -----------------------------------------------------------------------------------------------------


def test_with_one_step_intra_is_nothing_and_process_is_inter():
    rewards = torch.randn(3, 8, dtype=torch.float64)
    gains = rewards[..., None]
    assert not step_advantages(rewards, gains, "intra", 0.0).any()
    inter = step_advantages(rewards, None, "inter", 0.0)
    assert torch.allclose(step_advantages(rewards, gains, "process", 0.0), inter)
    assert torch.allclose(step_advantages(rewards, gains, "both", 0.5), inter)


def test_groupings_by_hand():
    """Two rollouts of two steps. Process: each step gets the standardised gains from itself on; intra: against its own mean."""
    rewards, gains = torch.tensor([[1.0, 0.0]]), torch.tensor([[[1.0, 0.0], [0.0, -1.0]]])
    pooled = torch.tensor([[[1.0, 0.0], [0.0, -1.0]]], dtype=torch.float64) / gains.std()
    suffix = torch.stack([pooled.sum(-1), pooled[..., 1]], -1)
    assert torch.allclose(step_advantages(rewards, gains, "process", 0.0), suffix, atol=1e-6)
    own = torch.tensor([[[0.5, -0.5], [0.5, -0.5]]], dtype=torch.float64) / max(gains.std(), rewards.std())
    assert torch.allclose(step_advantages(rewards, gains, "intra", 0.0), own, atol=1e-6)
    inter = torch.tensor([[1.0, -1.0]], dtype=torch.float64)[..., None] / 2**0.5
    assert torch.allclose(step_advantages(rewards, gains, "both", 0.3), inter + 0.3 * own, atol=1e-6)


def test_process_discounts_gains_to_come():
    assert discounted(torch.tensor([1.0, 2.0, 4.0]), 0.5).tolist() == [3.0, 4.0, 4.0]
    gains = torch.randn(2, 4, 3, dtype=torch.float64)
    whole = step_advantages(gains.sum(-1), gains, "process", 0.0)
    none = step_advantages(gains.sum(-1), gains, "process", 0.0, discount=0.0)
    assert torch.allclose(none, group_advantages(gains.flatten(1)).view_as(gains)) and not torch.allclose(whole, none)


def test_steps_that_a_shorter_rollout_never_took_count_for_nothing():
    """A rollout of one step beside rollouts of two: NaN beyond its end. Intra gives it nothing, and its padding moves no
    other."""
    gains = torch.tensor([[[0.3, 0.1], [0.2, math.nan], [0.0, 0.4], [0.1, 0.1]]], dtype=torch.float64)
    rewards = gains.nansum(-1)
    for grouping in ("process", "intra", "both"):
        found = step_advantages(rewards, gains, grouping, 0.5)
        assert torch.isfinite(found).all()
    assert not step_advantages(rewards, gains, "intra", 0.0)[0, 1].any()
    real = gains[~gains.isnan()]
    process = step_advantages(rewards, gains, "process", 0.0)
    assert process[0, 1, 1] == 0
    assert process[0, 1, 0].item() == pytest.approx(((0.2 - real.mean()) / real.std()).item())


@pytest.mark.parametrize(("grouping", "sign"), [("inter", 1), ("process", 1), ("both", 1), ("intra", -1)])
def test_delayed_effects_get_the_right_sign_except_under_intra(grouping, sign):
    """A first action that only pays at the second step: its covariance with its advantage must be positive."""
    torch.manual_seed(0)
    first, second = torch.randn(4000, 8, dtype=torch.float64), torch.randn(4000, 8, dtype=torch.float64)
    gains = torch.stack([torch.zeros_like(first), first + 0.1 * second], -1)
    advantages = step_advantages(gains.sum(-1), gains, grouping, 0.5)[..., 0]
    assert sign * (first * advantages).mean() > 0.1


@pytest.mark.parametrize("mix", [0.5, 1.0, 1.6])
def test_both_is_sound_up_to_its_bound_where_gains_are_smaller_than_rewards(mix):
    """Delayed effects only, K = 2, G = 8: the bound is 1.75. Dividing intra by the gains' own, smaller deviation breaks the
    last."""
    torch.manual_seed(0)
    first, second = torch.randn(4000, 8, dtype=torch.float64), torch.randn(4000, 8, dtype=torch.float64)
    gains = torch.stack([torch.zeros_like(first), first + 0.1 * second], -1)
    advantages = step_advantages(gains.sum(-1), gains, "both", mix)[..., 0]
    assert (first * advantages).mean() > 0


def test_the_mix_is_sound_below_its_bound_only():
    assert check_mix(0.25, 1, 8)
    assert check_mix(1.7, 2, 8) and not check_mix(1.75, 2, 8)
    assert not check_mix(-0.1, 2, 8)


@pytest.mark.parametrize("scale", ["batch", "none"])
def test_other_scales_keep_groups_comparable(scale):
    rewards = torch.tensor([[0.0, 1.0], [0.0, 0.1]], dtype=torch.float64)
    advantages = group_advantages(rewards, scale)
    divisor = rewards.std() if scale == "batch" else 1.0
    assert torch.allclose(advantages, torch.tensor([[-0.5, 0.5], [-0.05, 0.05]], dtype=torch.float64) / divisor)


# --- known answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dims", "bound"), [(8, 0.03), (64, 0.06)])
def test_gaussian_bandit_finds_its_optimum(dims, bound):
    """R = −‖a − a*‖²: root mean square error from 0.5 to below the bound in 400 Adam steps with 4 prompts of 8 rollouts."""
    torch.manual_seed(0)
    target, mean = 0.5 * torch.ones(dims), torch.zeros(dims, requires_grad=True)
    alike = torch.zeros(dims, dtype=torch.long)
    optimizer, sigma = torch.optim.Adam([mean], lr=0.02), 0.1
    for update in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - update / 400)
        action = WeightGaussian(mean.expand(32, -1), torch.tensor([sigma]).log(), Alike(alike, alike))
        taken = action.sample(torch.randn(32, dims)).detach()
        advantages = group_advantages(-(taken - target).square().sum(1).view(4, 8)).flatten()
        log_prob = action.log_prob_tokens(taken)
        optimizer.zero_grad()
        surrogate(log_prob - log_prob.detach(), advantages, 0.2, 0.28).mean().backward()
        optimizer.step()
    assert (mean - target).square().mean().sqrt() < bound


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_generations": 1}, "must lie in 2 to"),
        ({"num_generations": 5}, "even"),
        ({"steps": []}, "list of 1 to 64"),
        ({"steps": [0]}, "must lie in 1 to 64"),
        ({"steps": [9]}, "k_max"),
        ({"sigma": 0.0}, "sigma"),
        ({"num_iterations": 2}, "target_kl"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"noisy_steps": "some"}, "noisy_steps"),
        ({"grouping": "outer"}, "grouping"),
        ({"loss_type": "ppo"}, "loss_type"),
        ({"scale_rewards": "all"}, "scale_rewards"),
        ({"importance_sampling_level": "weight"}, "importance_sampling_level"),
        ({"delta": 1.1}, "delta"),
        ({"grouping": "both", "mix": 0.9}, "wrong sign"),
        ({"steps_by": "prompt"}, "steps_by"),
        ({"action": "bias"}, "action"),
        ({"control": "none"}, "control"),
        ({"current_states": 1.5}, "current_states"),
        ({"discount": -0.1}, "discount"),
        ({"target_kl": -1.0}, "target_kl"),
        ({"action": "code", "trainable": "lora"}, "code head alone"),
        ({"guard": GuardConfig(action="ask")}, "guard.action"),
        ({"guard": GuardConfig(kl=0.0)}, "guard.kl"),
    ],
)
def test_unsound_settings_are_refused_before_any_work(tiny, changes, reason):
    with pytest.raises(InputError, match=reason):
        check(_config(**changes), RewardConfig(), make_policy(tiny), tiny)


def test_dropout_in_a_policy_is_refused(tiny):
    policy = make_policy(tiny)
    policy.trunk.dropout = torch.nn.Dropout(0.1)
    with pytest.raises(InputError, match="dropout"):
        check(_config(), RewardConfig(), policy, tiny)
