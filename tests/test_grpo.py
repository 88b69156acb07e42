"""The invariants of GRPO on weights, by value, with negative controls."""

import copy
import math

import pytest
import torch

from conftest import make_policy
from synthnet.action import WeightGaussian
from synthnet.errors import InputError
from synthnet.grpo import check_mix, group_advantages, levelled, mirrored_sign, step_advantages, surrogate, token_weights
from synthnet.grpo_settings import GrpoConfig, check
from synthnet.policy_gradient import policy_loss
from synthnet.sampling import draw_cohorts, group_noise, sample_rollouts
from synthnet.scoring import RewardConfig


def _config(**changes):
    return GrpoConfig(**{"prompts": 3, "num_generations": 4, "steps": [1, 2], **changes})


def _sample(policy, task, n_steps, config, by_rollout=False):
    """What three start states of the task give in update 0: noisy steps, and the states of each cohort."""
    start = task.draw_start("val", [0, 1, 2])
    cohorts = draw_cohorts([(task.network, start)], n_steps, by_rollout, config, 0, 0)
    made = [sample_rollouts(policy, cohort, config, 0, 0) for cohort in cohorts]
    return [step for steps, _ in made for step in steps], [states for _, states in made]


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
    assert group_advantages(tiny, noise_floor=1e-3).abs().max() < 0.01


def test_a_mirrored_pair_with_equal_rewards_contributes_nothing():
    noise = torch.randn(2, 5).repeat_interleave(2, 0) * mirrored_sign(4)[:, None]
    advantages = group_advantages(torch.tensor([[1.0, 1.0, 2.0, 5.0]])).flatten()
    assert torch.allclose((advantages[:2, None] * noise[:2]).sum(0), torch.zeros(5, dtype=torch.float64), atol=1e-12)


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
        assert torch.allclose(token_weights(equal, loss_type, 7), torch.full((5,), 1 / 35))
    lengths = torch.tensor([2.0, 6.0])
    assert token_weights(lengths, "grpo", 10).tolist() == pytest.approx([1 / 4, 1 / 12])
    assert token_weights(lengths, "dapo", 10).tolist() == pytest.approx([1 / 8, 1 / 8])
    assert token_weights(lengths, "dr_grpo", 10).tolist() == pytest.approx([1 / 20, 1 / 20])


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
    own = torch.tensor([[[0.5, -0.5], [0.5, -0.5]]], dtype=torch.float64) / gains.std()
    assert torch.allclose(step_advantages(rewards, gains, "intra", 0.0), own, atol=1e-6)
    inter = torch.tensor([[1.0, -1.0]], dtype=torch.float64)[..., None] / 2**0.5
    assert torch.allclose(step_advantages(rewards, gains, "both", 0.3), inter + 0.3 * own, atol=1e-6)


@pytest.mark.parametrize(("grouping", "sign"), [("inter", 1), ("process", 1), ("both", 1), ("intra", -1)])
def test_delayed_effects_get_the_right_sign_except_under_intra(grouping, sign):
    """A first action that only pays at the second step: its covariance with its advantage must be positive."""
    torch.manual_seed(0)
    first, second = torch.randn(4000, 8, dtype=torch.float64), torch.randn(4000, 8, dtype=torch.float64)
    gains = torch.stack([torch.zeros_like(first), first + 0.1 * second], -1)
    advantages = step_advantages(gains.sum(-1), gains, grouping, 0.5)[..., 0]
    assert sign * (first * advantages).mean() > 0.1


def test_the_mix_is_sound_below_its_bound_only():
    assert check_mix(0.25, 1, 8)
    assert check_mix(1.7, 2, 8) and not check_mix(1.75, 2, 8)
    assert not check_mix(-0.1, 2, 8)


@pytest.mark.parametrize("scale", ["batch", "none"])
def test_other_scales_keep_groups_comparable(scale):
    rewards = torch.tensor([[0.0, 1.0], [0.0, 0.1]], dtype=torch.float64)
    advantages = group_advantages(rewards, 0.0, scale)
    divisor = rewards.std() if scale == "batch" else 1.0
    assert torch.allclose(advantages, torch.tensor([[-0.5, 0.5], [-0.05, 0.05]], dtype=torch.float64) / divisor)


# --- rollouts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noisy_steps", ["all", "one", "last"])
@pytest.mark.parametrize("task_name", ["tiny", "deep"])
def test_ratio_is_one_before_any_update(task_name, noisy_steps, request):
    task = request.getfixturevalue(task_name)
    policy, config = make_policy(task), _config(noisy_steps=noisy_steps)
    sampled, _ = _sample(policy, task, 3, config)
    assert len(sampled) == (3 if noisy_steps == "all" else 1)
    for step in sampled:
        for rows in (slice(0, 12), slice(4, 8)):  # also in a smaller micro-batch
            again = policy(step.states[rows], step.steps_left, task.network).log_prob_tokens(step.actions[rows])
            assert (again - step.log_probs[rows]).abs().max() < 1e-3
    _, stats = policy_loss(policy, policy, sampled, torch.randn(12, 1), config, 100)
    assert stats["ratio/max"] == pytest.approx(1, abs=1e-4)
    assert stats["clip_ratio/low_mean"] == stats["clip_ratio/high_mean"] == 0


def test_gradient_at_ratio_one_is_reinforce(tiny):
    """−mean(A · ∇ log π) over rollouts, steps and tokens, written out by hand."""
    policy, config = make_policy(tiny), _config()
    advantages, (sampled, _) = torch.randn(12), _sample(policy, tiny, 2, config)
    loss, _ = policy_loss(policy, policy, sampled, advantages[:, None], config, 100)
    loss.backward()
    surrogate_gradient = [p.grad.clone() for p in policy.trunk.parameters() if p.grad is not None]
    policy.zero_grad()
    total = 0.0
    for step in sampled:
        log_prob = policy(step.states, step.steps_left, tiny.network).log_prob_tokens(step.actions)
        total = total - (advantages[:, None] * log_prob).mean() / 2
    total.backward()
    reinforce = [p.grad for p in policy.trunk.parameters() if p.grad is not None]
    norm = torch.cat([g.flatten() for g in reinforce]).norm()
    error = torch.cat([(a - b).flatten() for a, b in zip(surrogate_gradient, reinforce, strict=True)]).norm()
    assert norm > 1e-3
    assert error < 1e-3 * norm


def test_zero_advantages_do_not_move_the_policy_and_kl_pulls_back(tiny):
    policy, config = make_policy(tiny), _config(beta=0.1)
    frozen = copy.deepcopy(policy)
    sampled, _ = _sample(policy, tiny, 2, config)
    loss, stats = policy_loss(policy, frozen, sampled, torch.zeros(12, 1), config, 100)
    loss.backward()
    assert stats["kl"] == 0
    assert all(p.grad is None or not p.grad.any() for p in policy.parameters())
    with torch.no_grad():
        policy.trunk.head.bias += 0.1
    policy.zero_grad()
    loss, stats = policy_loss(policy, frozen, sampled, torch.zeros(12, 1), config, 100)
    loss.backward()
    assert stats["kl"] > 0
    assert (policy.trunk.head.bias.grad >= 0).all()  # descent undoes the shift
    assert policy.trunk.head.bias.grad.any()
    assert all(p.grad is None for p in frozen.parameters())


def test_rollouts_repeat_with_the_seed_and_no_noise_repeats_but_mirrored():
    config, seen = _config(), []
    for update in range(3):
        for prompt in range(3):
            for step in range(2):
                noise = group_noise(config, 50, 0, update, prompt, step)
                assert torch.equal(noise, group_noise(config, 50, 0, update, prompt, step))
                assert torch.equal(noise[0::2], -noise[1::2])
                seen += [tuple(row.tolist()) for row in noise[0::2]]
    assert len(set(seen)) == len(seen)
    assert not torch.equal(group_noise(config, 50, 1, 0, 0, 0), group_noise(config, 50, 0, 0, 0, 0))


def test_a_deterministic_step_takes_the_mean(tiny):
    policy = make_policy(tiny, sigma=1e-6)
    _, ((*_, all_noisy),) = _sample(policy, tiny, 3, _config())
    _, ((*_, one_noisy),) = _sample(policy, tiny, 3, _config(noisy_steps="one"))
    assert torch.allclose(all_noisy, one_noisy, atol=1e-4)


def test_with_the_last_step_noisy_a_group_shares_its_states_before_it(tiny):
    (step,), ((*_, final),) = _sample(make_policy(tiny), tiny, 3, _config(noisy_steps="last"))
    assert step.steps_left == 1
    assert torch.equal(step.states.view(3, 4, -1)[:, 0], step.states.view(3, 4, -1)[:, 3])
    assert not torch.equal(final[0], final[1])


# --- known answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dims", "bound"), [(8, 0.03), (64, 0.06)])
def test_gaussian_bandit_finds_its_optimum(dims, bound):
    """R = −‖a − a*‖²: root mean square error from 0.5 to below the bound in 400 Adam steps with 4 prompts of 8 rollouts."""
    torch.manual_seed(0)
    target, mean = 0.5 * torch.ones(dims), torch.zeros(dims, requires_grad=True)
    optimizer, sigma = torch.optim.Adam([mean], lr=0.02), 0.1
    for update in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - update / 400)
        action = WeightGaussian(mean.expand(32, -1), torch.full((dims,), sigma).log(), torch.zeros(dims, dtype=torch.long), 1)
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
        ({"num_generations": 1}, "at least 2"),
        ({"num_generations": 5}, "even"),
        ({"steps": []}, "k_max"),
        ({"steps": [0]}, "k_max"),
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
    ],
)
def test_unsound_settings_are_refused_before_any_work(tiny, changes, reason):
    with pytest.raises(InputError, match=reason):
        check(_config(**changes), RewardConfig(), make_policy(tiny))


def test_dropout_in_a_policy_is_refused(tiny):
    policy = make_policy(tiny)
    policy.trunk.dropout = torch.nn.Dropout(0.1)
    with pytest.raises(InputError, match="dropout"):
        check(_config(), RewardConfig(), policy)
