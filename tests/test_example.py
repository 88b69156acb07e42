"""GRPO by example: the estimator against the pathwise gradient of the same smoothed reward, with negative controls."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from conftest import make_policy, setup_at
from synthnet.errors import InputError
from synthnet.grpo import GrpoConfig, RewardConfig, train_grpo
from synthnet.grpo.config import check
from synthnet.grpo.example import example_gradient, example_loss, others_baseline, rewards_of
from synthnet.nets import ACTIVATIONS
from synthnet.runs.journal import records
from synthnet.seeds import generator
from synthnet.tasks import build_task

SMOOTH, RIGHT = RewardConfig(accuracy=0.0, bounded_loss=1.0), RewardConfig(accuracy=1.0, bounded_loss=0.0)
CONFIG = GrpoConfig(rollout="example", num_generations=1024)


@pytest.fixture(scope="module")
def case():
    """A half-trained net of two hidden layers, what it sees, and noise of unlike size for each weight."""
    task = build_task("digits-mlp", hidden=[7, 5])
    images, labels = (part[:24] for part in task.examples("train"))
    mean = task.draw_start("val", [3])[0].clone().requires_grad_()
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(task.network.logits(mean[None], images)[0], labels)
        mean = (mean - 0.3 * torch.autograd.grad(loss, mean)[0]).detach().requires_grad_()
    sigma = 0.05 + 0.1 * torch.rand(len(mean), generator=torch.Generator().manual_seed(1))
    return task, mean.detach(), sigma, images, labels


def _estimate(case, reward, config=CONFIG, seed=0) -> Tensor:
    """The estimate without the division by the advantages' size."""
    task, mean, sigma, images, labels = case
    score = lambda outputs: rewards_of(outputs, labels, reward, 10)  # noqa: E731
    draw = generator(seed, "grpo-example", 0, 0)
    gradient, rewards = example_gradient(task.network.chain, task.network.spec, mean, sigma, images, score, config, draw)
    return gradient * (1.0 if config.control == "constant" else others_baseline(rewards).square().mean().sqrt())


def _pathwise(case, draws=4096) -> Tensor:
    """The gradient through the net of the mean bounded loss of nets drawn whole, one for each example: no line is shared."""
    task, mean, sigma, images, labels = case
    mean, spec = mean.clone().requires_grad_(), task.network.spec
    total, draw = 0.0, torch.Generator().manual_seed(5)
    for _ in range(draws // 128):
        nets = mean + sigma * torch.randn((128 * len(images), len(mean)), generator=draw)
        seen, tensors = images.repeat(128, 1), spec.unflatten(nets)
        for layer in task.network.chain.layers:
            seen = torch.einsum("noi,ni->no", tensors[layer.weight], seen) + tensors[layer.bias]
            seen = ACTIVATIONS[layer.activation](seen) if layer.activation else seen
        loss = torch.nn.functional.cross_entropy(seen, labels.repeat(128), reduction="none")
        value = (1 - loss.clamp(max=2 * math.log(10)) / math.log(10)).mean() / (draws // 128)
        total = total + torch.autograd.grad(value, mean)[0]
    return total


def _cosine(one: Tensor, other: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(one, other, dim=0).item()


def test_its_mean_is_the_pathwise_gradient_of_the_smoothed_reward(case):
    estimate = sum(_estimate(case, SMOOTH, seed=seed) for seed in range(8)) / 8
    exact = _pathwise(case)
    assert _cosine(estimate, exact) > 0.97
    assert (estimate.norm() / exact.norm()).item() == pytest.approx(1, abs=0.05)
    for place in case[0].network.spec.slices().values():
        assert _cosine(estimate[place], exact[place]) > 0.9


def test_right_or_wrong_has_no_gradient_and_is_learned_from_all_the_same(case):
    """Its direction agrees with the smooth reward's, and with itself between draws."""
    halves = [sum(_estimate(case, RIGHT, seed=seed) for seed in range(first, first + 4)) for first in (0, 4)]
    assert _cosine(*halves) > 0.8
    assert _cosine(halves[0], _pathwise(case, 1024)) > 0.3


@pytest.mark.parametrize("control", ["random", "constant"])
def test_advantages_that_know_nothing_of_the_rewards_cancel(case, control):
    plain, seeds = _estimate(case, SMOOTH), 24
    known = _estimate(case, SMOOTH, replace(CONFIG, num_generations=256), seed=1)
    blind = (
        sum(_estimate(case, SMOOTH, replace(CONFIG, num_generations=256, control=control), seed=n) for n in range(seeds))
        / seeds
    )
    assert _cosine(known, plain) > 0.6
    assert blind.norm() < 0.35 * plain.norm()


def test_flipped_advantages_point_the_other_way(case):
    assert _cosine(_estimate(case, SMOOTH, replace(CONFIG, control="flip")), _estimate(case, SMOOTH)) < -0.999


def test_the_baseline_is_the_mean_of_the_other_pairs():
    rewards = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 6.0], [9.0, 2.0], [0.0, 1.0], [2.0, 1.0]])
    advantages = others_baseline(rewards)
    assert advantages[:, 0].tolist() == [1 - 4, 3 - 4, 5 - 1.5, 9 - 1.5, 0 - 4.5, 2 - 4.5]
    assert torch.equal(others_baseline(rewards + 7), advantages)


def test_the_gradient_ends_in_the_mean_weights_and_repeats_to_the_bit(tiny):
    policy = make_policy(tiny, sigma=0.1).train()
    config = replace(CONFIG, num_generations=4, prompts=4, steps=[2], apart=1.0)
    one, metrics = example_loss(policy, tiny, config, RewardConfig(batch=64), 1.0, 0, 3)
    two, again = example_loss(policy, tiny, config, RewardConfig(batch=64), 1.0, 0, 3)
    assert torch.equal(one, two)
    assert metrics == again
    assert metrics["evaluations"] == 16
    assert metrics["shortfall"] > 0
    one.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.trunk.parameters() if p.requires_grad)


@pytest.mark.filterwarnings("ignore:outputs of different seeds")
def test_a_run_learns_from_rewards_alone(tiny, tmp_path):
    from synthnet.lab.fork import run_command

    make_policy(tiny, sigma=0.1).save(tmp_path / "p.safetensors")
    settings = ["task=digits-mlp", "task.hidden=[8]", "threads=1", "lab.tensorboard=false", "grpo.rollout=example",
                "grpo.num_generations=4", "grpo.prompts=4", "grpo.steps=[1]", "grpo.sigma=0.1", "reward.batch=128",
                "grpo.val_seeds=8", "grpo.signal_every=0", "grpo.loop.validate_every=20", "grpo.loop.checkpoint_every=20",
                "grpo.optim.learning_rate=2e-3", "grpo.loop.updates=80", f"policy_from={tmp_path}/p.safetensors"]  # fmt: skip
    run_command("grpo", [*settings, f"run_dir={tmp_path}/whole"])
    rows = records(tmp_path / "whole" / "metrics.jsonl")
    rewards = [row["reward"] for row in rows if "loss" in row]
    assert sum(rewards[-10:]) / 10 > sum(rewards[:10]) / 10 + 0.05
    run_command("grpo", [*settings, f"run_dir={tmp_path}/whole"])
    assert records(tmp_path / "whole" / "metrics.jsonl") == rows


@pytest.mark.parametrize(
    ("changes", "reward", "reason"),
    [
        ({"num_generations": 2}, {}, "two pairs"),
        ({"grouping": "process"}, {}, "grpo.grouping=inter"),
        ({"num_iterations": 2, "target_kl": 1.0}, {}, "grpo.num_iterations=1"),
        ({"beta": 0.1}, {}, "grpo.beta=0"),
        ({"current_states": 0.5}, {}, "grpo.current_states=0"),
        ({}, {"calibration": 1.0}, "reward.calibration is of a whole net"),
        ({"rollout": "net", "apart": 1.0}, {}, "grpo.apart goes with"),
    ],
)
def test_what_is_not_built_by_example_is_refused(tiny, changes, reward, reason):
    config = replace(GrpoConfig(rollout="example", num_generations=4), **changes)
    with pytest.raises(InputError, match=reason):
        check(config, RewardConfig(**reward), make_policy(tiny), tiny)


def test_a_net_that_is_no_chain_is_refused(tmp_path):
    task = build_task("mnist5k-cnn", channels=[2, 3])
    config = GrpoConfig(rollout="example", num_generations=4)
    with pytest.raises(InputError, match="chains of Linear layers only"):
        train_grpo(make_policy(task), task, config, RewardConfig(), setup_at(tmp_path / "run"))
