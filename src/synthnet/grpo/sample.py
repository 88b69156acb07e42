"""Sampling of GRPO: groups of whole sequences from each start state, and what is needed to train on them afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from synthnet.engine.network import Network
from synthnet.grpo.objective import mirrored
from synthnet.policy.action import WeightGaussian, standard_noise
from synthnet.policy.policy import Policy
from synthnet.policy.trunks._moe import recorded_experts
from synthnet.runs import ranks
from synthnet.seeds import generator


@dataclass
class SamplingConfig:
    """How an update samples.

    prompts: start states per update (of each member of a family in `mixed` updates); num_generations: rollouts of each (its
    group). steps: the K that sequences may have; steps_by: one K drawn for all groups of an update (group), or one for each
    rollout, mirrored pairs sharing theirs (rollout; None: that where a reward term counts steps). mirrored: rollouts come in
    pairs with opposite noise. noisy_steps: all; or one, drawn per update, while the others take the mean action (MixGRPO,
    arXiv 2507.21802); or the last (cheapest: rollouts share their states up to it). noisy_roles: the roles (columns of the
    policy's vocabulary) whose weights are explored, all where none is listed; the others take their mean and give no gradient
    on the first pass (parameters that they share with explored ones still move: train the heads alone to leave them as they
    are). What is wrong with classes may be mended in the last layer (Kirichenko et al. 2022, arXiv 2204.02937).
    current_states: share of prompts that start from a state which the policy just made of a fresh W0, not from W0 itself.
    """

    prompts: int = 16
    num_generations: int = 32
    steps: list[int] = field(default_factory=lambda: [1, 2])
    steps_by: str | None = None
    mirrored: bool = True
    noisy_steps: str = "all"
    noisy_roles: list[str] = field(default_factory=list)
    current_states: float = 0.0


@dataclass(frozen=True)
class Cohort:
    """Rollouts of an update that travel together: one network, one K.

    start [prompt weights] in raw units, `group` rollouts of each in a row; they are the rollouts `first` … of their groups, and
    the update's prompts `prompt` … of all processes; rows [rollout]: their places among this process's rollouts of the update.
    """

    net: Network
    n_steps: int
    start: Tensor
    group: int
    first: int
    prompt: int
    rows: Tensor


@dataclass(frozen=True)
class NoisyStep:
    """One synth step at which actions were drawn.

    index: which step of the sequence, from 0. States before it and actions taken [rollout weights], in scale units; the
    actions' log-probability [rollout token] under the sampling policy, whose Gaussians are `old` (one per state). `group`
    rollouts in a row share their state. experts: which experts the sampling policy's tokens went to, replayed in the update.
    """

    net: Network
    index: int
    steps_left: int
    states: Tensor
    actions: Tensor
    log_probs: Tensor
    old: WeightGaussian
    group: int
    rows: Tensor
    experts: tuple[Tensor, ...] = ()


def shared(action: WeightGaussian, group: int) -> WeightGaussian:
    """The Gaussian of each rollout, where `group` rollouts in a row have one."""
    return replace(action, mean=action.mean.repeat_interleave(group, 0)) if group > 1 else action


def draw_cohorts(
    starts: Sequence[tuple[Network, Tensor]], n_steps: int, by_rollout: bool, config: SamplingConfig, seed: int, update: int
) -> list[Cohort]:
    """The cohorts of an update from the start weights [prompt weights] of each network: all with `n_steps`, or with a K drawn
    for each rollout of a group (sorted, the same draw for every prompt). Of several processes, each has those of its share."""
    group = config.num_generations
    counts = {n_steps: group}
    if by_rollout:
        alike = 2 if config.mirrored else 1
        draw = generator(seed, "rollout-steps", update)
        drawn = torch.randint(len(config.steps), (group // alike,), generator=draw)
        counts = {}
        for index in drawn.sort().values.tolist():  # a K that is listed twice is twice as likely
            counts[config.steps[index]] = counts.get(config.steps[index], 0) + alike
    cohorts, prompt, mine = [], 0, ranks.own_share(config.prompts, "grpo.prompts")
    for number, (net, start) in enumerate(starts):
        places = (prompt + torch.arange(len(start)))[:, None] * group + torch.arange(group)
        first = 0
        for steps, count in counts.items():
            rows = places[:, first : first + count].flatten()
            cohorts.append(Cohort(net, steps, start, count, first, number * config.prompts + mine.start, rows))
            first += count
        prompt += len(start)
    return cohorts


@torch.no_grad()
def sample_rollouts(
    policy: Policy, cohort: Cohort, config: SamplingConfig, seed: int, update: int
) -> tuple[list[NoisyStep], list[Tensor]]:
    """Sample the sequences of a cohort: the noisy steps, and W0..WK [rollout weights] in raw units.

    Noise depends on (seed, update, prompt, step); mirrored rollouts share it with opposite signs at every step. Steps and roles
    that are not noisy take the mean action and are not trained in this update.
    """
    net, n_steps, group = cohort.net, cohort.n_steps, cohort.group
    scale, explored = policy.scale(net), explored_weights(policy, net, config.noisy_roles)
    chosen = torch.randint(n_steps, (1,), generator=generator(seed, "noisy-step", update)).item()
    noisy = {"all": range(n_steps), "one": [chosen], "last": [n_steps - 1]}[config.noisy_steps]
    state, sampled = (cohort.start / scale).repeat_interleave(group, 0), []
    states = [state * scale]
    prompts = range(cohort.prompt, cohort.prompt + len(cohort.start))
    mine = slice(cohort.first, cohort.first + cohort.group)
    for step in range(n_steps):
        left = n_steps - step
        with recorded_experts(policy) as experts:
            old = policy(state[::group], left, net)
        action = shared(old, group)
        if step in noisy:
            noise = [group_noise(config, old.mean.shape[1], seed, update, prompt, step)[mine] for prompt in prompts]
            taken = action.sample(torch.cat(noise).to(state) * explored)
            log_probs = action.log_prob_tokens(taken)
            sampled.append(
                NoisyStep(net, step, left, state, taken, log_probs, old, group, cohort.rows.to(state.device), tuple(experts))
            )
            state, group = policy.land(state, taken, left, net), 1
        else:
            state = policy.land(state, action.mean, left, net)
        states.append(state * scale)
    return sampled, states


def explored_weights(policy: Policy, net: Network, roles: Sequence[str]) -> Tensor:
    """1 for the dims of an action that get noise, 0 for the others [dim]; a scalar 1 where all do."""
    if not roles:
        return torch.ones((), device=policy.device)
    named = torch.tensor([role in roles for role in policy.vocabulary], device=policy.device)
    return named[policy.layout(net).column_of].float()


def group_noise(config: SamplingConfig, n_dims: int, seed: int, update: int, prompt: int, step: int) -> Tensor:
    """Standard normal noise [rollout dim] of one group at one step."""
    draw = generator(seed, "rollout", update, prompt, step)
    if not config.mirrored:
        return standard_noise((config.num_generations, n_dims), draw, torch.device("cpu"))
    return mirrored(standard_noise((config.num_generations // 2, n_dims), draw, torch.device("cpu")))


@torch.no_grad()
def current_states(
    policy: Policy, start: Tensor, config: SamplingConfig, steps_left: int, net: Network, draw: torch.Generator
) -> Tensor:
    """Start weights [prompt weights] of which a share (`current_states`) is replaced by what one sampled step makes of them."""
    if not config.current_states:
        return start
    n_current = max(1, round(config.current_states * len(start)))
    scale = policy.scale(net)
    state = start[:n_current] / scale
    action = policy(state, steps_left, net)
    noise = standard_noise(tuple(action.mean.shape), draw, start.device)
    taken = action.sample(noise * explored_weights(policy, net, config.noisy_roles))
    return torch.cat([policy.land(state, taken, steps_left, net) * scale, start[n_current:]])
