"""What one update of GRPO samples and learns from: rollouts, ratios, gradients, codes, signal."""

import copy

import pytest
import torch

from conftest import TINY_TRUNK, make_policy
from synthnet.grpo.agreement import effective_dimension, half_batch_cosine, reward_snr
from synthnet.grpo.config import GrpoConfig
from synthnet.grpo.experience import experience
from synthnet.grpo.hooks import Hook
from synthnet.grpo.loop import mix_reference
from synthnet.grpo.objective import policy_loss
from synthnet.grpo.sample import Cohort, Rollouts, current_states, draw_cohorts, group_noise, sample_cohort
from synthnet.grpo.score import RewardConfig, measure, step_gains
from synthnet.policy.moe import mixtures, replayed_experts
from synthnet.policy.rollout import synthesize_flat


def _config(**changes):
    return GrpoConfig(**{"prompts": 3, "num_generations": 4, "steps": [1, 2], **changes})


def _sample(policy, task, n_steps, config, by_rollout=False):
    """What three start states of the task give in update 0: noisy steps, and the states of each cohort."""
    start = task.draw_start("val", [0, 1, 2])
    cohorts = draw_cohorts([(task.network, start, None)], n_steps, by_rollout, config, 0, 0)
    made = [sample_cohort(policy, cohort, config, 0, 0) for cohort in cohorts]
    return [step for part in made for step in part.noisy], [part.states for part in made]


# --- rollouts ------------------------------------------------------------------------------------------------------


def test_k_may_be_drawn_for_each_rollout(tiny):
    """Pairs share their K; every rollout is in one cohort; noise is that of the same rollout and step whatever its K."""
    policy, config = make_policy(tiny), _config(num_generations=8, steps=[1, 3])
    start = tiny.draw_start("val", [0, 1])
    cohorts = draw_cohorts([(tiny.network, start, None)], 1, True, config, 0, 4)
    assert {cohort.n_steps for cohort in cohorts} == {1, 3}
    assert torch.cat([cohort.rows for cohort in cohorts]).sort().values.tolist() == list(range(16))
    assert all(cohort.group % 2 == 0 and cohort.first % 2 == 0 for cohort in cohorts)
    for cohort in cohorts:
        made = sample_cohort(policy, cohort, config, 0, 4)
        first = made.noisy[0]
        assert len(made.states) == cohort.n_steps + 1
        noise = torch.cat([group_noise(config, start.shape[1], 0, 4, prompt, 0) for prompt in (0, 1)])[cohort.rows]
        taken = (first.actions - first.old.mean.repeat_interleave(cohort.group, 0)) / 0.05
        assert torch.allclose(taken, noise, atol=1e-3)


def test_k_by_rollout_lets_efficiency_and_step_cost_move_advantages(tiny):
    """With one K per group a cost per step is the same for all its rollouts and cancels."""
    config, reward = _config(num_generations=8), RewardConfig(accuracy=0.0, bounded_loss=0.0, step_cost=0.1, batch=32)
    assert config.k_by_rollout(reward) and not config.k_by_rollout(RewardConfig())
    policy = make_policy(tiny)
    seen = experience(policy, [tiny], config, reward, (), seed=0, update=0)
    assert seen.advantages.any()
    fixed = experience(policy, [tiny], _config(num_generations=8, steps_by="group"), reward, (), seed=0, update=0)
    assert not fixed.advantages.any()


def test_loss_types_weigh_rollouts_of_unequal_length_as_they_say(tiny):
    """At ratio 1 the gradient with respect to a rollout's log-probabilities is −A times its weight: grpo gives the tokens of a
    one-step rollout twice the weight of a two-step rollout's, dapo the same."""
    policy = make_policy(tiny)
    sampled, _ = _sample(policy, tiny, 1, _config(steps=[1, 2], num_generations=8), by_rollout=True)
    lengths = torch.zeros(24)
    for step in sampled:
        lengths[step.rows] += step.old.n_tokens
    assert set((lengths / lengths.min()).tolist()) == {1.0, 2.0}
    values = {}
    for loss_type in ("grpo", "bnpo", "dapo", "dr_grpo"):
        advantages = torch.where(lengths == lengths.min(), -1.0, 0.0)[:, None]
        values[loss_type] = policy_loss(policy, policy, sampled, advantages, _config(loss_type=loss_type), int(lengths.max()))[
            0
        ]
    short = (lengths == lengths.min()).float()
    assert values["grpo"].item() == pytest.approx(short.mean().item(), rel=1e-4)
    assert (
        values["dapo"].item()
        == values["bnpo"].item()
        == pytest.approx(((short * lengths).sum() / lengths.sum()).item(), rel=1e-4)
    )
    assert values["dr_grpo"].item() == pytest.approx(((short * lengths).sum() / (24 * lengths.max())).item(), rel=1e-4)


def test_all_rollouts_of_an_update_see_the_same_images_and_the_next_update_others(tiny):
    """Common random numbers, also where K is drawn for each rollout and the reward reads noisy copies: nets that are the same
    get the same reward."""
    policy, seen = make_policy(tiny, sigma=1e-9), []
    reward = RewardConfig(accuracy=0.0, bounded_loss=0.0, robustness=1.0, batch=32)
    for update in (0, 1):
        config = _config(num_generations=8, steps=[1, 1], steps_by="rollout")
        found = experience(policy, [tiny], config, reward, (), seed=0, update=update)
        seen.append(found.metrics["reward"])
        assert found.metrics["reward_std"] < 1e-6
    assert seen[0] != seen[1]


def test_gains_of_steps_sum_to_the_reward_whatever_its_terms(tiny):
    """But for W0's quality, which a group shares: a reward without accuracy must move process advantages too."""
    policy, data = make_policy(tiny), tiny.examples("reward")
    config = _config(num_generations=8, steps=[2], grouping="process")
    size = Hook(lambda *, completions, **_: [float(c.weights["fc1.weight"].norm()) for c in completions])
    only = RewardConfig(accuracy=0.0, bounded_loss=0.0, batch=32)
    first = experience(policy, [tiny], config, only, [size], 0, 0).advantages
    flipped = experience(policy, [tiny], config, only, [Hook(size.function, -1.0)], 0, 0).advantages
    assert not torch.allclose(first, flipped)
    cohort = Cohort(tiny.network, 2, tiny.draw_start("val", [0]), 2, 0, 0, torch.arange(2))
    states = [tiny.draw_start("val", [k, k + 5]) for k in (0, 1, 2)]
    scored = measure(Rollouts(cohort, states, []), *data, RewardConfig(), True, torch.Generator())
    rewards = torch.tensor([3.0, 5.0], dtype=torch.float64)
    gains = step_gains(scored, rewards, step_rewards=True)
    assert torch.allclose(gains.sum(-1), rewards - scored.quality()[:, 0])


def test_the_clip_says_nothing_and_the_loss_is_zero_before_the_first_step(tiny):
    """Centred advantages at ratio 1: the value of the loss is zero, its gradient is not."""
    policy, config = make_policy(tiny), _config()
    sampled, _ = _sample(policy, tiny, 2, config)
    advantages = torch.tensor([1.0, -1.0] * 6)[:, None]
    loss, stats = policy_loss(policy, policy, sampled, advantages, config, 100)
    loss.backward()
    assert abs(loss.item()) < 1e-4
    assert policy.trunk.head.weight.grad.norm() > 1e-3
    assert stats["clip_ratio/low_mean"] == stats["clip_ratio/high_mean"] == 0


def test_log_ratio_is_epsilon_times_shift_minus_half_its_square(tiny):
    """ℓ = ⟨ε, Δ⟩ − ½‖Δ‖² per action token, for a policy moved by Δ in noise units; and the mean of exp ℓ is 1."""
    policy, moved = make_policy(tiny), make_policy(tiny)
    (step,), _ = _sample(policy, tiny, 1, _config(num_generations=512))
    with torch.no_grad():
        moved.trunk.head.bias += 0.05 * 0.02
        shifted = moved(step.of_rollouts, 1, tiny.network)
        old = step.old.mean.repeat_interleave(512, 0)
        epsilon, delta = (step.actions - old) / 0.05, (shifted.mean - old) / 0.05
        expected = shifted._token_sums(epsilon * delta - 0.5 * delta.square())
        found = shifted.log_prob_tokens(step.actions) - step.log_probs
    assert (found - expected).abs().max() < 2e-3
    assert found.exp().mean().item() == pytest.approx(1, abs=5e-3)


def test_rewards_are_measured_on_warped_images(tiny):
    """Breaks if the stage forgets reward.warp. Actions are the same: their noise is drawn elsewhere."""
    policy, config = make_policy(tiny), _config(num_generations=4)
    straight, bent = (
        experience(policy, [tiny], config, RewardConfig(batch=64, warp=warp), (), seed=0, update=0) for warp in (0.0, 0.3)
    )
    assert torch.equal(straight.noisy[0].actions, bent.noisy[0].actions)
    assert straight.metrics["rewards/bounded_loss"] != bent.metrics["rewards/bounded_loss"]


def test_prompts_may_start_from_what_the_policy_just_made(tiny):
    policy, start = make_policy(tiny), tiny.draw_start("val", [0, 1, 2, 3])
    mixed = current_states(policy, start, 0.5, 2, tiny.network, torch.Generator().manual_seed(0))
    assert torch.equal(mixed[2:], start[2:])
    assert (mixed[:2] - start[:2]).abs().amax(1).min() > 1e-3
    assert torch.equal(current_states(policy, start, 0.0, 2, tiny.network, torch.Generator()), start)


def test_the_reference_moves_by_its_share(tiny):
    reference, learner = make_policy(tiny), make_policy(tiny)
    with torch.no_grad():
        learner.trunk.head.bias += 1.0
    before = reference.trunk.head.bias.clone()
    mix_reference(reference, learner, 0.0)
    assert torch.equal(reference.trunk.head.bias, before)
    mix_reference(reference, learner, 0.6)
    assert torch.allclose(reference.trunk.head.bias, before + 0.6)
    mix_reference(reference, learner, 1.0)
    assert torch.equal(reference.trunk.head.bias, learner.trunk.head.bias)


@pytest.mark.parametrize("level", ["normalized", "sequence"])
def test_gradients_of_other_ratio_levels_at_ratio_one(tiny, level):
    """sequence: REINFORCE on the mean over a rollout's tokens; normalized: each token's gradient over √D."""
    policy, config = make_policy(tiny), _config(importance_sampling_level=level)
    advantages, (sampled, _) = torch.randn(12), _sample(policy, tiny, 2, config)
    policy_loss(policy, policy, sampled, advantages[:, None], config, 100)[0].backward()
    ours = torch.cat([p.grad.flatten() for p in policy.trunk.parameters() if p.grad is not None])
    policy.zero_grad()
    total = 0.0
    for step in sampled:
        action = policy(step.of_rollouts, step.steps_left, tiny.network)
        log_prob = action.log_prob_tokens(step.actions)
        if level == "normalized":
            log_prob = log_prob / action.token_sizes().sqrt()
        total = total - (advantages[:, None] * log_prob).mean() / 2
    total.backward()
    theirs = torch.cat([p.grad.flatten() for p in policy.trunk.parameters() if p.grad is not None])
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()


def test_recorded_experts_are_replayed_where_the_gate_would_now_choose_others(tiny):
    """After the gate is turned round, the replayed forward still sends every token where it went when it was sampled."""
    policy = make_policy(tiny, {**TINY_TRUNK, "experts": 4})
    sampled, _ = _sample(policy, tiny, 1, _config())
    (step,) = sampled
    assert len(step.experts) == 2
    gates = [part.gate.weight for part in mixtures(policy)]
    with torch.no_grad():
        for gate in gates:
            gate.mul_(-1)
        policy(step.states, 1, tiny.network)
        free = [part.chosen.clone() for part in mixtures(policy)]
        with replayed_experts(policy, step.experts):
            policy(step.states, 1, tiny.network)
            held = [part.chosen for part in mixtures(policy)]
    assert all(torch.equal(a, b) for a, b in zip(held, step.experts, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(free, step.experts, strict=True))
    assert all(part.replay is None for part in mixtures(policy))


# --- latent codes --------------------------------------------------------------------------------------------------


def test_a_code_policy_starts_as_the_policy_it_was_made_of_and_acts_through_its_code(tiny):
    policy = make_policy(tiny)
    coded, start = policy.with_code(12, seed=0), tiny.draw_start("val", [0, 1, 2])
    assert torch.allclose(
        synthesize_flat(coded, start, 2, tiny.network), synthesize_flat(policy, start, 2, tiny.network), atol=1e-5
    )
    sampled, ((*_, final),) = _sample(coded, tiny, 2, _config(num_generations=4))
    assert all(step.actions.shape == (12, 12) and step.old.n_tokens == 1 for step in sampled)
    assert (final - synthesize_flat(policy, start, 2, tiny.network)[:, -1].repeat_interleave(4, 0)).abs().max() > 1e-3
    for step in sampled:  # the density is that of the raw code, whatever it decodes to
        again = coded(step.of_rollouts, step.steps_left, tiny.network).log_prob_tokens(step.actions)
        assert (again - step.log_probs).abs().max() < 1e-3


# --- signal --------------------------------------------------------------------------------------------------------


def test_half_batches_agree_where_there_is_a_signal_and_not_where_there_is_none(tiny):
    """Advantages that follow the first noise number of each rollout, against advantages of another draw."""
    policy, config = make_policy(tiny, sigma=0.5), _config(num_generations=64)
    sampled, _ = _sample(policy, tiny, 1, config)
    (step,) = sampled
    noise = (step.actions - step.old.mean.repeat_interleave(64, 0)).sum(1)

    def cosine(advantages):
        halves = [torch.where((torch.arange(192) // 64) % 2 == half, advantages, 0.0) for half in (0, 1)]
        return half_batch_cosine(
            policy, lambda half: policy_loss(policy, policy, sampled, halves[half][:, None], config, 100)[0]
        )

    assert cosine(noise) > 0.5
    assert abs(cosine(torch.randn(192, generator=torch.Generator().manual_seed(0)))) < 0.3


def test_reward_snr_and_effective_dimension_by_known_answers():
    draw = torch.Generator().manual_seed(0)
    signal = torch.randn((200, 16), generator=draw, dtype=torch.float64)
    halves = [signal + 0.5 * torch.randn((200, 16), generator=draw, dtype=torch.float64) for _ in (0, 1)]
    assert reward_snr(*halves) == pytest.approx(1 / (0.25 / 2), rel=0.1)  # the mean of two halves has half their noise
    assert abs(reward_snr(halves[0], halves[1].flip(0))) < 0.5
    assert effective_dimension(0.5, 64) == pytest.approx(32)
    assert effective_dimension(-0.1, 64) is None


# --- rollouts, as they are sampled ---------------------------------------------------------------------------------


@pytest.mark.parametrize("noisy_steps", ["all", "one", "last"])
@pytest.mark.parametrize("task_name", ["tiny", "deep"])
def test_ratio_is_one_before_any_update(task_name, noisy_steps, request):
    task = request.getfixturevalue(task_name)
    policy, config = make_policy(task), _config(noisy_steps=noisy_steps)
    sampled, _ = _sample(policy, task, 3, config)
    assert len(sampled) == (3 if noisy_steps == "all" else 1)
    for step in sampled:
        for rows in (slice(0, 12), slice(4, 8)):  # also in a smaller micro-batch
            again = policy(step.of_rollouts[rows], step.steps_left, task.network).log_prob_tokens(step.actions[rows])
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
        log_prob = policy(step.of_rollouts, step.steps_left, tiny.network).log_prob_tokens(step.actions)
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
    assert step.states.shape[0] == 3 and step.group == 4
    assert not torch.equal(final[0], final[1])
