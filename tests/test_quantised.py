"""Rewards of nets whose weights are rounded to a few bits: by value, without bias, and where they apply."""

from dataclasses import replace

import pytest
import torch

from conftest import make_policy
from synthnet.engine import rounded
from synthnet.errors import InputError
from synthnet.grpo import GrpoConfig, RewardConfig
from synthnet.grpo.config import check
from synthnet.grpo.example import Examples
from synthnet.grpo.sample import Rollouts, draw_cohorts
from synthnet.grpo.score import in_use, measure
from synthnet.tasks import build_task


def test_weights_lie_on_even_levels_of_their_unit(tiny):
    spec, nets = tiny.network.spec, tiny.draw_start("zoo", [0, 1])
    made = spec.unflatten(rounded(spec, nets, 4))
    for name, tensor in spec.unflatten(nets).items():
        if tensor.ndim == 2:  # biases, one for each net
            assert torch.equal(made[name], tensor)
            continue
        step = tensor.abs().amax(2, keepdim=True) / 7
        levels = made[name] / step
        assert torch.allclose(levels, levels.round(), atol=1e-4)
        assert levels.abs().max() <= 7 + 1e-4
        assert ((made[name] - tensor).abs() <= step / 2 + 1e-6).all()
        assert len(levels.round().unique()) == 15


def test_rounding_by_chance_has_the_weights_as_its_mean_and_repeats(tiny):
    spec, nets = tiny.network.spec, tiny.draw_start("zoo", [3])
    draw = torch.Generator().manual_seed(0)
    many = rounded(spec, nets.expand(4000, -1), 3, draw)
    worst = (many.mean(0) - nets[0]).abs().max() / nets.abs().max()
    assert worst < 0.02
    again = rounded(spec, nets.expand(4000, -1), 3, torch.Generator().manual_seed(0))
    assert torch.equal(many, again)


def test_whole_nets_are_scored_as_they_are_rounded(tiny):
    config, reward = GrpoConfig(prompts=2, num_generations=2), RewardConfig(bits=2)
    start = tiny.draw_start("zoo", [0, 1])
    (cohort,) = draw_cohorts([(tiny.network, start, None)], 1, False, config, 0, 0)
    final = start.repeat_interleave(2, 0) * 3
    data = tiny.examples("val")
    mine = measure(Rollouts(cohort, [final, final], []), *data, reward, False, torch.Generator())
    coarse = rounded(tiny.network.spec, final, 2)
    other = measure(Rollouts(cohort, [coarse, coarse], []), *data, replace(reward, bits=None), False, torch.Generator())
    assert torch.equal(mine.loss, other.loss)
    assert not torch.equal(
        mine.loss, measure(Rollouts(cohort, [final] * 2, []), *data, RewardConfig(), False, torch.Generator()).loss
    )


def test_examples_see_a_rounded_net(tiny):
    """With three levels rewards change, with many they hardly do; the means that the gradient ends in never do."""
    policy = make_policy(tiny, sigma=0.05).train()
    config = GrpoConfig(prompts=2, steps=[1])
    plain, coarse = (Examples(policy, [tiny], [1.0], config, RewardConfig(batch=64, bits=bits), (), 0, 0) for bits in (None, 2))
    assert torch.equal(plain.batches[0].means, coarse.batches[0].means)
    assert not torch.equal(plain.batches[0].rewards, coarse.batches[0].rewards)
    fine = Examples(policy, [tiny], [1.0], config, RewardConfig(batch=64, bits=16), (), 0, 0)
    assert fine.metrics["reward"] == pytest.approx(plain.metrics["reward"], abs=0.05)


def test_a_task_of_rewards_alone_has_no_such_nets():
    task = build_task("cartpole")
    policy = make_policy(task)
    with pytest.raises(InputError, match=r"leave reward\.bits out"):
        check(GrpoConfig(signal_every=0), RewardConfig(bits=4), policy, task)


def test_the_best_policy_is_chosen_by_the_nets_that_are_rewarded(tiny):
    with pytest.raises(InputError, match=r"pass grpo\.select=reward"):
        check(GrpoConfig(), RewardConfig(bits=4), make_policy(tiny), tiny)


def test_functions_of_ones_own_are_asked_about_rounded_nets(tiny):
    start = tiny.draw_start("zoo", [0, 1])
    (cohort,) = draw_cohorts([(tiny.network, start, None)], 1, False, GrpoConfig(prompts=2, num_generations=2), 0, 0)
    rollouts = Rollouts(cohort, [start.repeat_interleave(2, 0)] * 2, [])
    seen = in_use(rollouts, RewardConfig(bits=2)).states[-1]
    assert torch.equal(seen, rounded(tiny.network.spec, rollouts.states[-1], 2))
    assert in_use(rollouts, RewardConfig()) is rollouts
