"""Action noise: one sigma for all weights, or by role: what each kind of weight moves the reward.

With one sigma for all weights, nearly all of the reward's spread comes from the few weights that it feels most (in a small MLP,
its last layer), and what the others did is lost in it: their share of the policy gradient is noise (LOG.md has figures).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from synthnet.engine import quality, score
from synthnet.grpo.sample import mirrored
from synthnet.policy import Policy, Prompt, draw_prompt, rollout, standard_noise
from synthnet.seeds import generator
from synthnet.tasks import Task

PROBE = 0.05  # scale units: small enough that the spread is proportional to it
MOST = 50.0  # times the noise of the role that is felt most; dead weights would ask for infinitely much
PROMPTS, DRAWS, IMAGES = 8, 32, 512


@torch.no_grad()
def role_shares(policy: Policy, members: Sequence[Task], split: str, seed: int) -> Tensor:
    """The noise of each role [role], as a multiple of that of the role which rewards feel most, so that each role alone would
    spread rewards equally.

    A role is a column of the policy's vocabulary. Measured once, on what one step of this policy makes of fresh start weights:
    the spread of quality over mirrored draws of small noise on the weights of that role alone, as a root mean square over start
    weights and over the members that have the role.
    """
    felt, times = torch.zeros(len(policy.vocabulary)), torch.zeros(len(policy.vocabulary))
    for member in members:
        prompt = draw_prompt("role-noise", member, split, policy.device, [1], PROMPTS, IMAGES, seed, 0)
        nets = rollout(policy, prompt.start, 1, member.network, spec=prompt.spec)[-1]
        columns = policy.layout(member.network).column_of
        noise = standard_noise((DRAWS // 2, nets.shape[1]), generator(seed, "role-noise-draws"), nets.device)
        nudges = PROBE * mirrored(noise) * policy.scale(member.network)
        for role in columns.unique().tolist():
            felt[role] += _variance(member, nets, nudges * (columns == role), prompt)
            times[role] += 1
    felt = (felt / times.clamp_min(1)).sqrt()
    shares = (felt.max() / felt).clamp(max=MOST)  # infinite, so the most, for a role that is not felt; NaN where none is
    return torch.where(times > 0, shares, torch.ones_like(shares)).nan_to_num(nan=1.0)


def _variance(member: Task, nets: Tensor, nudges: Tensor, prompt: Prompt) -> float:
    """Variance of quality over the nudges [draw weights], mean over nets."""
    net = member.network
    scored = [score(net, weights + nudges, *prompt.of_net(number)) for number, weights in enumerate(nets)]
    spreads = [quality(*each, net.objective.chance).var() for each in scored]
    return torch.stack(spreads).mean().item()


def noise_shares(policy: Policy, members: Sequence[Task], config, reward, seed: int) -> Tensor:
    """The noise of each column of the vocabulary as a multiple of sigma."""
    if config.sigma_by == "role":
        return role_shares(policy, members, reward.split, seed).to(policy.device)
    return torch.ones(len(policy.vocabulary), device=policy.device)


def set_sigma(policy: Policy, sigma: float, shares: Tensor) -> None:
    """Give the policy's action its noise: sigma, in scale units, times what each column of the vocabulary takes of it."""
    policy.log_sigma.data.copy_((sigma * shares).log())
    policy.config.action.sigma = float(sigma)


def set_noise(policy: Policy, sigma: float | None, shares: Tensor, own: Tensor) -> None:
    """The noise as it is set now, or the policy's own; averages and retreats leave neither alone."""
    policy.log_sigma.data.copy_(own) if sigma is None else set_sigma(policy, sigma, shares)
