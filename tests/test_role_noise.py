"""Noise shared out among roles: each role alone then spreads rewards equally, and the stage trains with it."""

import copy

import pytest
import torch

from conftest import TINY_TRUNK
from synthnet.audit.evaluation import task_of_policy
from synthnet.engine.network import score
from synthnet.errors import InputError
from synthnet.grpo.config import GrpoConfig
from synthnet.grpo.loop import noise_shares, train_grpo
from synthnet.grpo.rewards import quality
from synthnet.grpo.role_noise import MOST, role_shares
from synthnet.grpo.sample import Cohort, SamplingConfig, sample_rollouts
from synthnet.grpo.score import RewardConfig
from synthnet.policy.file import read_policy
from synthnet.policy.policy import Policy, PolicyConfig
from synthnet.policy.rollout import synthesize_flat
from synthnet.stages import run_calibration
from synthnet.synthesis import policy_path
from synthnet.tasks.task import build_task
from synthnet.train.loop import LoopConfig

pytestmark = pytest.mark.filterwarnings("ignore:outputs of different seeds")
ROLE = {"prompts": 2, "num_generations": 4, "steps": [1], "val_seeds": 4, "sigma": 0.02, "sigma_by": "role"}


@pytest.fixture(scope="module")
def shipped():
    """The bundled mnist5k-mlp policy, whose nets work: near chance, accuracy jumps and spreads are not proportional."""
    policy = read_policy(policy_path("mnist5k-mlp"))
    return policy, task_of_policy(policy)


def test_each_role_alone_spreads_rewards_as_much_as_any_other(shipped):
    """Measured with other draws, start weights and images than the shares were. Breaks if shares multiply the wrong columns, or
    are variances instead of deviations."""
    policy, task = shipped
    net, start, (images, labels) = task.network, task.draw_start("val", list(range(12))), task.data("train")
    shares = role_shares(policy, task.members, "train", seed=0)
    assert shares.min() == 1 and shares.max() <= MOST
    nets, columns = synthesize_flat(policy, start, 1, net)[:, -1], policy.layout(net).column_of
    noise = torch.randn((96, net.spec.n_weights), generator=torch.Generator().manual_seed(9)) * policy.scale(net)

    def spread(role: int, sigma: float) -> float:
        nudges = sigma * noise * (columns == role)
        variances = [quality(*score(net, w + nudges, images, labels), task.n_classes).var() for w in nets]
        return torch.stack(variances).mean().sqrt().item()

    even = [spread(role, 0.03 * shares[role].item()) for role in range(len(shares)) if shares[role] < MOST]
    uneven = [spread(role, 0.03) for role in range(len(shares)) if shares[role] < MOST]
    assert len(even) == 3  # the bias of the hidden layer is hardly felt at all: it gets the most noise that a role may have
    assert max(even) < 1.5 * min(even)
    assert max(uneven) > 3 * min(uneven)


def test_shares_depend_on_nothing_but_policy_and_seed(policy, tiny):
    first, again = (role_shares(policy, tiny.members, "train", seed=1) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, role_shares(policy, tiny.members, "train", seed=2))


def test_one_sigma_for_all_weights_is_the_default(policy, tiny):
    assert torch.equal(noise_shares(policy, tiny.members, GrpoConfig(), RewardConfig(), 0), torch.ones(len(policy.vocabulary)))


def test_the_stage_trains_with_it_and_keeps_it_in_the_policy(tmp_path, policy, tiny):
    config = GrpoConfig(**ROLE, loop=LoopConfig(updates=2, validate_every=2, checkpoint_every=2), select="last")
    shares = role_shares(policy, tiny.members, "train+reward", seed=0)
    train_grpo(policy, tiny, config, RewardConfig(batch=40), tmp_path / "run", "x", seed=0)
    kept = read_policy(tmp_path / "run" / "policy.safetensors")
    assert kept.log_sigma.exp() == pytest.approx(0.02 * shares, rel=1e-5)
    assert kept.config.action.sigma == 0.02


def test_calibration_measures_with_shares_and_says_so(tmp_path, policy, tiny):
    policy.save(tmp_path / "p.safetensors")
    settings = ["task.hidden=[8]", "threads=1", "grpo.prompts=2", "grpo.num_generations=4", "reward.batch=40"]
    line = run_calibration([*settings, "grpo.sigma_by=role", f"policy_from={tmp_path}/p.safetensors"])
    assert line.startswith("grpo.sigma=") and line.endswith(" grpo.sigma_by=role")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"sigma": None}, "needs grpo.sigma"), ({"action": "code"}, "fixed noise"), ({"sigma_by": "x"}, "weight, role")],
)
def test_unsound_settings_are_refused(tmp_path, policy, tiny, changes, message):
    with pytest.raises(InputError, match=message):
        train_grpo(policy, tiny, GrpoConfig(**{**ROLE, **changes}), RewardConfig(batch=40), tmp_path / "run", "x", seed=0)
    assert not (tmp_path / "run").exists()


def test_only_the_roles_named_are_explored_and_trained(policy, tiny, tmp_path):
    """Breaks if noise reaches another column, or if what has no noise gets a gradient."""
    net, start = tiny.network, tiny.draw_start("val", [0, 1])
    role = next(iter(policy.vocabulary))
    columns = policy.layout(net).column_of
    explored = columns == list(policy.vocabulary).index(role)
    cohort = Cohort(net, 1, start, 4, 0, 0, torch.arange(8))
    (step,), _ = sample_rollouts(policy, cohort, SamplingConfig(num_generations=4, noisy_roles=[role]), 0, 0)
    moved = step.actions != step.old.mean.repeat_interleave(4, 0)
    assert moved[:, explored].all() and not moved[:, ~explored].any() and 0 < explored.sum() < len(explored)
    before = synthesize_flat(policy, start, 1, net)
    config = GrpoConfig(
        **{**ROLE, "sigma_by": "weight"}, trainable="head", noisy_roles=[role], select="last", loop=LoopConfig(updates=2)
    )
    path = train_grpo(copy.deepcopy(policy), tiny, config, RewardConfig(batch=32), tmp_path / "run", "", 0)
    changed = (synthesize_flat(read_policy(path), start, 1, net) != before)[:, 0]
    assert changed[:, explored].any() and not changed[:, ~explored].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"noisy_roles": ["fc9"]}, "has no fc9; its roles are"), ({"action": "code"}, "not with grpo.action=code")],
)
def test_roles_that_cannot_be_explored_are_refused(policy, tiny, tmp_path, change, message):
    config = GrpoConfig(**{"noisy_roles": list(policy.vocabulary)[:1], **change})
    with pytest.raises(InputError, match=message):
        train_grpo(policy, tiny, config, RewardConfig(batch=32), tmp_path / "run", "", 0)


def test_a_member_without_the_roles_is_refused(tmp_path):
    """With one hidden layer there are no edges between hidden units, so nothing would be explored."""
    family = build_task("digits-mlp-family", members=[[4, 4], [6]], heldout=[])
    policy = Policy.create(PolicyConfig(backbone=TINY_TRUNK), list(family.family), 0)
    config, reward = GrpoConfig(noisy_roles=["edge"]), RewardConfig(batch=32)
    with pytest.raises(InputError, match=r"mlp\(sizes=\[64, 6, 10\]\) has none of edge"):
        train_grpo(policy, family, config, reward, tmp_path / "run", "", 0)
    with pytest.raises(InputError, match=r"reward\.warp must lie in 0\.\.10, got inf"):
        train_grpo(policy, family, GrpoConfig(), RewardConfig(batch=32, warp=float("inf")), tmp_path / "run", "", 0)
    assert not (tmp_path / "run").exists()
