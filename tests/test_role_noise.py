"""Noise shared out among roles: each role alone then spreads rewards equally, and the stage trains with it."""

import pytest
import torch

from conftest import setup_at
from synthnet.audit.evaluation import task_of_policy
from synthnet.bundled import policy_path
from synthnet.commands.lab import calibrate
from synthnet.engine.quality import quality
from synthnet.engine.scoring import score
from synthnet.errors import InputError
from synthnet.grpo.config import GrpoConfig
from synthnet.grpo.loop import train_grpo
from synthnet.grpo.noise import MOST, noise_shares, role_shares
from synthnet.grpo.score import RewardConfig
from synthnet.policy.file import read_policy
from synthnet.policy.rollout import synthesize_flat
from synthnet.train.loop import LoopConfig

pytestmark = pytest.mark.filterwarnings("ignore:outputs of different seeds")
ROLE = {"prompts": 2, "num_generations": 4, "steps": [1], "val_seeds": 4, "sigma": 0.02, "sigma_by": "role"}


@pytest.fixture(scope="module")
def shipped():
    """The bundled mnist5k-mlp policy, whose nets work: near chance, accuracy jumps and spreads are not proportional."""
    policy = read_policy(policy_path("mnist5k-mlp"))
    return policy, task_of_policy(policy)


@pytest.mark.slow
def test_each_role_alone_spreads_rewards_as_much_as_any_other(shipped):
    """Measured with other draws, start weights and images than the shares were. Breaks if shares multiply the wrong columns, or
    are variances instead of deviations."""
    policy, task = shipped
    net, start, (images, labels) = task.network, task.draw_start("val", list(range(12))), task.examples("train")
    shares = role_shares(policy, task.members, "train", seed=0)
    assert shares.min() == 1 and shares.max() <= MOST
    nets, columns = synthesize_flat(policy, start, 1, net)[:, -1], policy.layout(net).column_of
    noise = torch.randn((96, net.spec.n_weights), generator=torch.Generator().manual_seed(9)) * policy.scale(net)

    def spread(role: int, sigma: float) -> float:
        nudges = sigma * noise * (columns == role)
        variances = [quality(*score(net, w + nudges, images, labels), task.objective.chance).var() for w in nets]
        return torch.stack(variances).mean().sqrt().item()

    even = [spread(role, 0.03 * shares[role].item()) for role in range(len(shares)) if shares[role] < MOST]
    uneven = [spread(role, 0.03) for role in range(len(shares)) if shares[role] < MOST]
    assert len(even) == 3  # the bias of the hidden layer is hardly felt at all: it gets the most noise that a role may have
    assert max(even) < 2 * min(even)
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
    train_grpo(policy, tiny, config, RewardConfig(batch=40), setup_at(tmp_path / "run"))
    kept = read_policy(tmp_path / "run" / "policy.safetensors")
    assert kept.log_sigma.exp() == pytest.approx(0.02 * shares, rel=1e-5)
    assert kept.config.action.sigma == 0.02


def test_calibration_measures_with_shares_and_says_so(tmp_path, policy, tiny, capsys):
    policy.save(tmp_path / "p.safetensors")
    settings = ["task.hidden=[8]", "threads=1", "grpo.prompts=2", "grpo.num_generations=4", "reward.batch=40"]
    calibrate([*settings, "grpo.sigma_by=role", f"policy_from={tmp_path}/p.safetensors"])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("grpo.sigma=") and line.endswith(" grpo.sigma_by=role")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"sigma": None}, "needs grpo.sigma"), ({"action": "code"}, "fixed noise"), ({"sigma_by": "x"}, "weight, role")],
)
def test_unsound_settings_are_refused(tmp_path, policy, tiny, changes, message):
    with pytest.raises(InputError, match=message):
        train_grpo(policy, tiny, GrpoConfig(**{**ROLE, **changes}), RewardConfig(batch=40), setup_at(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
