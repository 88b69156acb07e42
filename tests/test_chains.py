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
from synthnet.train import LoopConfig

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
    loss, _ = examples.batches[0].chains.loss(policy, None, examples.config, 1)
    return -_flat(torch.autograd.grad(loss, list(policy.trunk.parameters()), allow_unused=True))


def _along(policy, task, exact, **changes) -> tuple[float, float]:
    found = [_estimated(policy, _examples(policy, task, seed, **changes)) for seed in range(1, 17)]
    along = torch.stack([each @ exact / exact.square().sum() for each in found])
    return along.mean().item(), along.std().item() / len(along) ** 0.5


def test_a_drawn_step_is_credited_for_what_follows(tiny, monkeypatch):
    """The mean is the gradient through the noise of the first step; advantages that know nothing cancel."""
    policy = make_policy(tiny, sigma=0.3).train()
    monkeypatch.setattr(example, "draw_prompt", lambda *a, **k: draw_prompt(*a[:-2], 0, 0))  # one prompt for all seeds
    exact = _first_step(policy, copy.deepcopy(policy).requires_grad_(False), tiny, _examples(policy, tiny))
    mean, error = _along(policy, tiny, exact)
    assert mean == pytest.approx(1, abs=3 * error + 0.05)
    assert error < 0.1
    mean, error = _along(policy, tiny, exact, control="random")
    assert abs(mean) < 4 * error + 0.05


@pytest.mark.parametrize(
    ("grouping", "first", "last"),
    [("inter", [-1.5, 1.5], 1.0), ("process", [-1.5, 1.5], 1.0), ("intra", [0.0, -1.0], 0.5), ("both", [-1.5, 1.25], 1.125)],
)
def test_what_a_first_step_is_credited_for(grouping, first, last):
    """Two rollouts that start at 1: through 2 to 3, and through 3 to 9, so with gains of 1, 1 and of 2, 6; over 2, what the
    examples' own advantages were over. In other units of reward it is the same."""
    states = [torch.ones(2, 1), torch.tensor([[2.0], [3.0]])]
    config = replace(DRAWN, grouping=grouping)
    for unit in (0.1, 1000.0):
        judge = lambda number, nets, unit=unit: unit * nets[:, 0]  # noqa: E731
        sizes, rewards = torch.full((2,), 2 * unit), unit * torch.tensor([3.0, 9.0])
        chains = Chains([], states, 2).credited(rewards, sizes, judge, config, torch.Generator())
        assert chains.advantages[:, 0].tolist() == pytest.approx(first)
    assert LAST[grouping](2, config.mix) == last


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
        passes = {"num_iterations": 2, "target_kl": 10.0, "val_seeds": 2, "signal_every": 0}
        config = replace(DRAWN, num_generations=4, grouping="both", loop=LoopConfig(2, 2), **passes)
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


def test_processes_draw_what_one_would(tiny, monkeypatch):
    """Each rank's rollouts are its share of those of a single process, noise and rewards."""
    policy = make_policy(tiny, sigma=0.1).train()
    whole = _examples(policy, tiny, num_generations=4)
    parts = []
    for rank in range(2):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", str(rank))
        parts.append(_examples(policy, tiny, num_generations=4))
    rewards = torch.cat([part.batches[0].rewards for part in parts])
    assert torch.allclose(rewards, whole.batches[0].rewards, atol=1e-5)
    actions = torch.cat([part.batches[0].chains.noisy[0].actions for part in parts])
    assert torch.allclose(actions, whole.batches[0].chains.noisy[0].actions, atol=1e-5)
    assert len(whole.batches[0].rewards.unique()) == 16


def test_halves_are_of_prompts(tiny):
    """The two halves' gradients add up to that of all, drawn steps and examples."""
    policy = make_policy(tiny, sigma=0.1).train()
    examples = _examples(policy, tiny, num_generations=4, apart=0.0)
    seen = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(example, "half_batch_cosine", lambda policy, half: seen.extend(half(which) for which in (0, 1)) or 0.0)
        examples.cosine()
    parameters = [p for p in policy.trunk.parameters() if p.requires_grad]
    halves = [_flat(torch.autograd.grad(each, parameters, allow_unused=True)) for each in seen]
    whole = _flat(torch.autograd.grad(examples.loss()[0], parameters, allow_unused=True))
    assert torch.allclose((halves[0] + halves[1]) / 16, whole, atol=1e-4 * whole.abs().max().item())


def test_three_steps_and_intra_of_one(tiny):
    policy = make_policy(tiny, sigma=0.1).train()
    examples = _examples(policy, tiny, steps=[3], num_generations=4, grouping="process")
    assert [step.index for step in examples.batches[0].chains.noisy] == [0, 1]
    assert examples.batches[0].chains.advantages.shape == (16, 3)
    assert not any(each.any() for each in _examples(policy, tiny, steps=[1], grouping="intra").batches[0].advantages)
