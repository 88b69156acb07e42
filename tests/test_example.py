"""GRPO by example: baselines, updates and runs, and what is refused (what examples feel: `test_felt.py`)."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import synthnet
from conftest import make_policy, setup_at
from synthnet.engine.network import Network
from synthnet.errors import InputError
from synthnet.grpo import GrpoConfig, RewardConfig, train_grpo
from synthnet.grpo.config import Kinds, check
from synthnet.grpo.example import Examples, others_baseline, rewards_of
from synthnet.grpo.felt import check_felt
from synthnet.grpo.hooks import ExampleHook
from synthnet.grpo.scored import Seen
from synthnet.runs.journal import records
from synthnet.tasks import build_task
from synthnet.train.distil import DistilConfig, check_distil
from test_felt import CLASSES, Sequences


def test_the_baseline_is_the_mean_of_the_other_pairs():
    rewards = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 6.0], [9.0, 2.0], [0.0, 1.0], [2.0, 1.0]])
    advantages = others_baseline(rewards)
    assert advantages[:, 0].tolist() == [1 - 4, 3 - 4, 5 - 1.5, 9 - 1.5, 0 - 4.5, 2 - 4.5]
    assert torch.equal(others_baseline(rewards + 7), advantages)


def _examples(policy, task, **changes):
    config = replace(GrpoConfig(prompts=4, steps=[2], apart=1.0), **changes)
    return Examples(policy, [task], [1.0], config, RewardConfig(batch=64), (), 0, 3)


def test_the_gradient_ends_in_the_mean_weights_and_repeats_to_the_bit(tiny):
    policy = make_policy(tiny, sigma=0.1).train()
    (one, metrics), (two, again) = (_examples(policy, tiny).loss() for _ in range(2))
    assert torch.equal(one, two)
    assert metrics == again
    assert metrics["evaluations"] == 16
    assert metrics["shortfall"] > 0
    assert metrics["kl_old"] == 0
    one.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.trunk.parameters() if p.requires_grad)


def test_a_second_pass_reads_the_first_ones_draws_at_the_policy_as_it_is_now(tiny):
    """Its ratio and its KL leave one and zero; clipped draws give nothing."""
    policy = make_policy(tiny, sigma=0.1).train()
    examples = _examples(policy, tiny, apart=0.0)
    loss, _ = examples.loss()
    loss.backward()
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.grad is not None:
                parameter -= 1e-4 * parameter.grad
    _, stats = examples.loss()
    assert stats["kl_old"] > 0
    assert stats["ratio/max"] > 1
    examples.config.epsilon = examples.config.epsilon_high = 1e-9
    clipped, _ = examples.batches[0].gradient(examples.batches[0].means + 0.02, examples.config)
    examples.config.epsilon = examples.config.epsilon_high = 10.0
    free, _ = examples.batches[0].gradient(examples.batches[0].means + 0.02, examples.config)
    assert clipped.norm() < 0.7 * free.norm()


def test_worst_classes_weigh_more_the_worse_they_are():
    outputs = torch.zeros(2, 6, 3)
    outputs[:, :4, 0] = outputs[:, 4:5, 1] = 1.0  # class 0 right, class 1 half, class 2 never
    outputs[:, 5, 0] = 1.0
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    seen = Seen(outputs, labels, build_task("digits-mlp").objective)
    given = rewards_of(seen, RewardConfig(accuracy=0.0, bounded_loss=0.0, worst_class=1.0))
    assert given[0, 4] > 100 * given[0, 0] > 0
    assert given[0, 5] == 0


def test_a_function_of_ones_own_rewards_examples():
    outputs, labels = torch.randn(4, 6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    seen = Seen(outputs, labels, build_task("digits-mlp").objective)
    costs = torch.tensor([[0.0, 1.0, 1.0], [5.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    hook = ExampleHook(lambda outputs, targets: -costs[targets, outputs.argmax(-1)], 0.5)
    none = RewardConfig(accuracy=0.0, bounded_loss=0.0)
    assert torch.equal(rewards_of(seen, none, [hook]), -0.5 * costs[labels, outputs.argmax(-1)])
    for wrong, message in (
        (lambda outputs, targets: outputs.mean(), "one number for each example"),
        (lambda outputs, targets: outputs[:, 0] * math.inf, "not finite"),
        (lambda outputs, targets: 1 / 0, "ZeroDivisionError"),
    ):
        with pytest.raises(InputError, match=message):
            rewards_of(seen, none, [ExampleHook(wrong)])


RUN = ["task=digits-mlp", "task.hidden=[8]", "threads=1", "lab.tensorboard=false", "grpo.prompts=4", "grpo.steps=[1]",
       "grpo.sigma=0.1", "reward.batch=128", "grpo.val_seeds=8", "grpo.signal_every=10", "grpo.loop.validate_every=20",
       "grpo.loop.checkpoint_every=20", "grpo.optim.learning_rate=2e-3"]  # fmt: skip


@pytest.mark.filterwarnings("ignore:outputs of different seeds")
def test_a_run_learns_from_rewards_alone_in_several_passes_and_repeats(tiny, tmp_path):
    """By example unless asked otherwise."""
    from synthnet.lab.fork import run_command

    make_policy(tiny, sigma=0.1).save(tmp_path / "p.safetensors")
    settings = [*RUN, "grpo.num_iterations=2", "grpo.target_kl=1", "grpo.beta=1e-4", "grpo.loop.updates=40"]
    settings += [f"policy_from={tmp_path}/p.safetensors", f"run_dir={tmp_path}/whole"]
    run_command("grpo", settings)
    rows = [row for row in records(tmp_path / "whole" / "metrics.jsonl") if "loss" in row]
    rewards = [row["reward"] for row in rows]
    assert sum(rewards[-10:]) / 10 > sum(rewards[:10]) / 10 + 0.05
    assert all(row["evaluations"] == 16 for row in rows)
    assert rows[-1]["kl_old"] > 0
    assert rows[-1]["kl"] > 0
    assert "signal/half_batch_cosine" in rows[0]
    run_command("grpo", settings)
    assert [row for row in records(tmp_path / "whole" / "metrics.jsonl") if "loss" in row] == rows


@pytest.mark.filterwarnings("ignore:outputs of different seeds")
def test_terms_of_both_kinds_are_learned_in_one_update(tiny, tmp_path):
    from synthnet.lab.fork import run_command

    make_policy(tiny, sigma=0.1).save(tmp_path / "p.safetensors")
    settings = [*RUN, "reward.calibration=1", "grpo.num_generations=6", "grpo.loop.updates=2"]
    run_command("grpo", [*settings, f"policy_from={tmp_path}/p.safetensors", f"run_dir={tmp_path}/both"])
    rows = [row for row in records(tmp_path / "both" / "metrics.jsonl") if "loss" in row]
    assert all("rewards/calibration" in row and row["evaluations"] == 16 for row in rows)


def test_what_rollouts_are_follows_from_rewards_and_nets(tiny):
    policy, mine = make_policy(tiny), lambda **changes: (GrpoConfig(**changes), RewardConfig())
    assert check(*mine(), policy, tiny) == Kinds(True, False)
    assert check(*mine(rollout="net"), policy, tiny) == Kinds(False, True)
    assert check(*mine(grouping="process"), policy, tiny) == Kinds(False, True)
    assert check(*mine(), policy, tiny, has_hooks=True) == Kinds(True, True)
    assert check(GrpoConfig(), RewardConfig(diversity=1.0), policy, tiny) == Kinds(True, True)
    both = Kinds(True, True).shares(RewardConfig(diversity=3.0), (), ())
    assert both == (0.25, 0.75)


@pytest.mark.parametrize(
    ("changes", "reward", "reason"),
    [
        ({"draws": 5}, {}, "mirrored pairs"),
        ({"rollout": "example", "grouping": "process"}, {}, "pass grpo.passed_on=drawn"),
        ({"rollout": "example", "current_states": 0.5}, {}, "grpo.current_states=0"),
        ({"rollout": "example"}, {"calibration": 1.0}, "reward.calibration is of a whole net"),
        ({"rollout": "net"}, {"examples": ["x.py:f"]}, "reward.examples needs"),
        ({"rollout": "net", "noisy_layers": "last"}, {}, "noisy_layers=last is of rollouts by example: not of whole nets"),
        ({"noisy_layers": "one", "mirrored": False}, {}, "by example: they need grpo.mirrored=true"),
    ],
)
def test_what_has_no_meaning_by_example_is_refused(tiny, changes, reward, reason):
    with pytest.raises(InputError, match=reason):
        check(GrpoConfig(**changes), RewardConfig(**reward), make_policy(tiny), tiny)


def test_noise_on_ids_is_refused_before_any_work():
    ids = torch.randint(5, (60, 3), generator=torch.Generator().manual_seed(0)).numpy()
    task = synthnet.Task(module=Sequences, data=synthnet.Data(ids, ids[:, 0] % CLASSES, standardise=False), name="ids")
    policy = make_policy(task)
    check(GrpoConfig(), RewardConfig(), policy, task)
    with pytest.raises(InputError, match="this task's inputs are ids"):
        check(GrpoConfig(), RewardConfig(input_noise=0.3), policy, task)
    with pytest.raises(InputError, match=r"distil\.input_noise is added to numbers"):
        check_distil(DistilConfig(steps=[1], labels="hard", input_noise=0.3), policy, task)


def test_layers_without_a_rule_are_named_and_such_nets_are_rolled_out_whole(tmp_path):
    net = Network(nn.Sequential(nn.PReLU(), nn.Linear(4, 3)), torch.zeros(2, 4))
    with pytest.raises(InputError, match="cannot feel noise on 0, PReLU"):
        check_felt(net)
    task = build_task("digits-mlp", hidden=[4])
    with pytest.raises(InputError, match="mirrored pairs"):
        train_grpo(make_policy(task), task, GrpoConfig(draws=5), RewardConfig(), setup_at(tmp_path / "run"))
