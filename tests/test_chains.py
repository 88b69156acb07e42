"""What GRPO by example passes on: whole draws, credited for what follows, against the pathwise gradient through the chain."""

import copy
from dataclasses import replace

import pytest
import torch

from conftest import make_policy, setup_at
from synthnet.errors import InputError
from synthnet.grpo import GrpoConfig, RewardConfig, example, train_grpo
from synthnet.grpo.chains import LAST, Chains
from synthnet.grpo.config import check
from synthnet.grpo.example import Examples
from synthnet.policy import draw_prompt
from synthnet.runs.journal import records

SMOOTH = RewardConfig(accuracy=0.0, bounded_loss=1.0, batch=24)
DRAWN = GrpoConfig(prompts=4, steps=[2], draws=4, num_generations=64, passed_on="drawn", sigma=0.3)


def _examples(policy, task, seed=0, **changes) -> Examples:
    return Examples(policy, [task], [1.0], replace(DRAWN, **changes), SMOOTH, (), seed, 0)


def _first_step(policy, last, task, examples: Examples) -> torch.Tensor:
    """The gradient, through the noise, of the mean reward that the second step's means have after a drawn first step, in the
    units that advantages have. `last`: the policy at the second step, which no gradient reaches."""
    net, scale = task.network, policy.scale(task.network)
    prompt = draw_prompt("grpo", task, SMOOTH.split, policy.device, [2], 4, SMOOTH.batch, 0, 0)
    action = policy(prompt.start / scale, 2, net)
    sigma = action.log_sigma.detach().exp()
    total = 0.0
    half = torch.randn(512, len(sigma), generator=torch.Generator().manual_seed(11))
    sizes = examples.batches[0].sizes.view(4, -1).mean(1)
    for number, mean in enumerate(action.mean):
        state = mean + sigma * torch.cat([half, -half])
        made = last(state, 1, net).mean
        own = torch.Generator().manual_seed(number)
        noise = torch.cat([(sigma * torch.randn(made.shape, generator=own)) * sign for sign in (1, -1)])
        nets = (made.repeat(2, 1) + noise) * scale
        loss = net.objective.each_loss(net.logits(nets, prompt.images), prompt.labels)
        chance = net.objective.chance
        total = total + (1 - loss.clamp(max=2 * chance) / chance).mean() / sizes[number]
    return _flat(torch.autograd.grad(total / 4, list(policy.trunk.parameters()), allow_unused=True))


def _flat(gradients) -> torch.Tensor:
    return torch.cat([each.flatten() for each in gradients if each is not None])


def _estimated(policy, examples: Examples) -> torch.Tensor:
    loss, _ = examples.chains[0].loss(policy, None, examples.config, 1)
    return -_flat(torch.autograd.grad(loss, list(policy.trunk.parameters()), allow_unused=True))


def _along(policy, task, exact, **changes) -> tuple[float, float]:
    found = [_estimated(policy, _examples(policy, task, seed, **changes)) for seed in range(1, 9)]
    along = torch.stack([each @ exact / exact.square().sum() for each in found])
    return along.mean().item(), along.std().item() / len(along) ** 0.5


def test_a_drawn_step_is_credited_for_what_follows(tiny, monkeypatch):
    """The mean is the gradient through the noise of the first step; advantages that know nothing cancel."""
    policy = make_policy(tiny, sigma=0.3).train()
    monkeypatch.setattr(example, "draw_prompt", lambda *a, **k: draw_prompt(*a[:-2], 0, 0))  # one prompt for all seeds
    exact = _first_step(policy, copy.deepcopy(policy).requires_grad_(False), tiny, _examples(policy, tiny))
    mean, error = _along(policy, tiny, exact)
    assert mean == pytest.approx(1, abs=4 * error + 0.1)
    mean, error = _along(policy, tiny, exact, control="random")
    assert abs(mean) < 4 * error + 0.05


@pytest.mark.parametrize(
    ("grouping", "first", "last"),
    [("inter", [-3.0, 3.0], 1.0), ("process", [-3.0, 3.0], 1.0), ("intra", [0.0, -2.0], 0.5), ("both", [-3.0, 2.5], 1.125)],
)
def test_what_a_first_step_is_credited_for(grouping, first, last):
    """Two rollouts that start at 1: through 2 to 3, and through 3 to 9. Advantages over 0.5, what examples' own were over."""
    states = [torch.ones(2, 1), torch.tensor([[2.0], [3.0]])]
    config = replace(DRAWN, grouping=grouping)
    judge = lambda number, nets: nets[:, 0]  # noqa: E731
    sizes, rewards = torch.full((2,), 0.5), torch.tensor([3.0, 9.0])
    chains = Chains([], states, 2).credited(rewards, sizes, judge, config, torch.Generator())
    expected = {"inter": [-6.0, 6.0], "process": None, "intra": [0.0, -4.0], "both": [-6.0, 5.0]}[grouping]
    if expected is None:  # gains 1, 1; 2, 6, whose mean is 2.5: sums of what is left of them from the first step on
        expected = [2 * -3.0, 2 * 3.0]
    assert chains.advantages[:, 0].tolist() == pytest.approx(expected)
    assert chains.last_share(config) == last
    assert first == [value / 2 for value in expected]


def test_of_one_step_nothing_is_passed_on(tiny):
    policy = make_policy(tiny, sigma=0.1).train()
    drawn, mean = (_examples(policy, tiny, steps=[1], passed_on=how) for how in ("drawn", "mean"))
    assert torch.equal(drawn.loss()[0], mean.loss()[0])
    assert drawn.metrics["evaluations"] == mean.metrics["evaluations"] == 16


def test_all_rollouts_of_a_prompt_count_and_seeds_alone_are_held_apart(tiny):
    policy = make_policy(tiny, sigma=0.1).train()
    examples = _examples(policy, tiny, num_generations=6, apart=1.0, beta=0.01)
    assert examples.metrics["evaluations"] == 4 * 6 * 4
    assert examples.metrics["n_steps"] == 2
    loss, metrics = examples.loss(copy.deepcopy(policy))
    loss.backward()
    assert metrics["kl_old"] == metrics["kl"] == 0
    assert all(p.grad.isfinite().all() for p in policy.trunk.parameters() if p.grad is not None)
    seeds = examples._run(examples.batches[0])[::6]
    assert metrics["shortfall"] == pytest.approx(example.shortfall(tiny.network.alignment, seeds, 0.9).item(), rel=1e-4)


@pytest.mark.filterwarnings("ignore:outputs of different seeds")
def test_a_run_passes_draws_on_and_repeats(tiny, tmp_path):
    rows = []
    for name in ("one", "two"):
        config = replace(
            DRAWN, num_generations=4, grouping="both", num_iterations=2, target_kl=10.0, val_seeds=2, signal_every=0
        )
        config.loop.updates = config.loop.validate_every = 2
        policy = make_policy(tiny, sigma=0.1)
        train_grpo(policy, tiny, config, replace(SMOOTH), setup_at(tmp_path / name))
        rows.append([row["loss"] for row in records(tmp_path / name / "metrics.jsonl") if "loss" in row])
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2


def test_other_groupings_need_draws_that_are_passed_on(tiny):
    policy = make_policy(tiny)
    with pytest.raises(InputError, match=r"pass grpo\.passed_on=drawn"):
        check(replace(DRAWN, rollout="example", grouping="process", passed_on="mean"), SMOOTH, policy, tiny)
    assert check(replace(DRAWN, rollout="example", grouping="process"), SMOOTH, policy, tiny).example
    assert set(LAST) == {"inter", "process", "intra", "both"}
