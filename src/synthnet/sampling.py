"""Sampling of GRPO: groups of whole sequences from each start state, and what is needed to train on them afterwards."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from synthnet.action import WeightGaussian, standard_noise
from synthnet.functional import Network
from synthnet.grpo import mirrored_sign
from synthnet.policy import Policy
from synthnet.seeds import generator


@dataclass
class SamplingConfig:
    """How an update samples.

    prompts: start states per update; num_generations: rollouts of each (its group). steps: the K that sequences may have, one
    drawn per update. mirrored: rollouts come in pairs with opposite noise. noisy_steps: all; or one, drawn per update, while
    the others take the mean action (MixGRPO, arXiv 2507.21802); or the last (cheapest: rollouts share their states up to it).
    """

    prompts: int = 16
    num_generations: int = 32
    steps: list[int] = field(default_factory=lambda: [1, 2])
    mirrored: bool = True
    noisy_steps: str = "all"


@dataclass(frozen=True)
class NoisyStep:
    """One synth step at which actions were drawn.

    index: which step of the sequence, from 0. States before it and actions taken [rollout weights], in scale units; the
    actions' log-probability [rollout token] under the sampling policy, whose Gaussians are `old` (one per state). `group`
    rollouts in a row share their state.
    """

    index: int
    steps_left: int
    states: Tensor
    actions: Tensor
    log_probs: Tensor
    old: WeightGaussian
    group: int


def shared(action: WeightGaussian, group: int) -> WeightGaussian:
    """The Gaussian of each rollout, where `group` rollouts in a row have one."""
    return replace(action, mean=action.mean.repeat_interleave(group, 0)) if group > 1 else action


@torch.no_grad()
def sample_rollouts(
    policy: Policy, start: Tensor, n_steps: int, net: Network, config: SamplingConfig, seed: int, update: int
) -> tuple[list[NoisyStep], list[Tensor]]:
    """Sample G sequences for each start state [prompt weights]: the noisy steps, and W0..WK [rollout weights] in raw units.

    Noise depends on (seed, update, prompt, step); mirrored rollouts share it with opposite signs at every step. Steps that are
    not noisy take the mean action and are not trained in this update.
    """
    scale, group = policy.scale(net), config.num_generations
    chosen = torch.randint(n_steps, (1,), generator=generator(seed, "noisy-step", update)).item()
    noisy = {"all": range(n_steps), "one": [chosen], "last": [n_steps - 1]}[config.noisy_steps]
    state, sampled = (start / scale).repeat_interleave(group, 0), []
    states = [state * scale]
    for step in range(n_steps):
        old = policy(state[::group], n_steps - step, net)
        action = shared(old, group)
        if step in noisy:
            noise = torch.cat([group_noise(config, start.shape[1], seed, update, prompt, step) for prompt in range(len(start))])
            taken = action.sample(noise.to(state))
            sampled.append(NoisyStep(step, n_steps - step, state, taken, action.log_prob_tokens(taken), old, group))
            state, group = taken, 1
        else:
            state = action.mean
        states.append(state * scale)
    return sampled, states


def group_noise(config: SamplingConfig, n_weights: int, seed: int, update: int, prompt: int, step: int) -> Tensor:
    """Standard normal noise [rollout weights] of one group at one step."""
    draw = generator(seed, "rollout", update, prompt, step)
    if not config.mirrored:
        return standard_noise((config.num_generations, n_weights), draw, torch.device("cpu"))
    half = standard_noise((config.num_generations // 2, n_weights), draw, torch.device("cpu"))
    return half.repeat_interleave(2, 0) * mirrored_sign(config.num_generations)[:, None]
