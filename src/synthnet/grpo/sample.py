"""Sampling of GRPO: groups of whole sequences from each start state, and what is needed to train on them afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from synthnet.engine import Network
from synthnet.policy import Policy, Prompt, WeightGaussian, chosen_experts, standard_noise, synth_steps
from synthnet.runs import ranks
from synthnet.seeds import generator


@dataclass(frozen=True)
class Cohort:
    """Rollouts of an update that travel together: one network, one K.

    start [P weights] in raw units, `group` rollouts of each in a row; they are the rollouts `first` … of their groups, and the
    update's prompts `prompt` … of all processes; rows [R]: their places among this process's rollouts of the update. spec
    [P number]: which variant of the task each start is for.
    """

    net: Network
    n_steps: int
    start: Tensor
    group: int
    first: int
    prompt: int
    rows: Tensor
    spec: Tensor | None = None


@dataclass(frozen=True)
class NoisyStep:
    """One synth step at which actions were drawn.

    index: which step of the sequence, from 0. states before it [R / group weights], each shared by `group` rollouts in a row,
    and actions taken [R weights], in scale units; the actions' log-probability [R token] under the sampling policy, whose
    Gaussians are `old` (one per state). experts: which experts its tokens went to, replayed in the update. spec [row number]:
    as the policy was told.
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
    spec: Tensor | None = None

    @property
    def of_rollouts(self) -> Tensor:
        """The state of each rollout [R weights]."""
        return self.states.repeat_interleave(self.group, 0)


@dataclass(frozen=True)
class Rollouts:
    """A cohort's sequences W0..WK [R weights], in raw units, and their noisy steps."""

    cohort: Cohort
    states: list[Tensor]
    noisy: list[NoisyStep]


def sample(
    policy: Policy, nets: Sequence[Network], prompts: Sequence[Prompt], config, by_rollout: bool, seed: int, update: int
) -> list[Rollouts]:
    """The rollouts of one update for these networks and their prompts; `config` is a GrpoConfig."""
    mine, starts = ranks.own_share(config.prompts, "grpo.prompts"), []
    for number, (net, prompt) in enumerate(zip(nets, prompts, strict=True)):
        draw, own = generator(seed, "current-state", update, number), prompt.share(mine)
        states = current_states(policy, own.start, config.current_states, own.n_steps, net, draw, own.spec)
        starts.append((net, states, own.spec))
    cohorts = draw_cohorts(starts, prompts[0].n_steps, by_rollout, config, seed, update)
    return [sample_cohort(policy, cohort, config, seed, update) for cohort in cohorts]


def draw_cohorts(
    starts: Sequence[tuple[Network, Tensor, Tensor | None]], n_steps: int, by_rollout: bool, config, seed: int, update: int
) -> list[Cohort]:
    """The cohorts of an update from the start weights [P weights] and specs of each network: all with `n_steps`, or with a K
    drawn for each rollout of a group (sorted, the same draw for every prompt). Of several processes, each has those of its
    share."""
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
    for number, (net, start, spec) in enumerate(starts):
        places = (prompt + torch.arange(len(start)))[:, None] * group + torch.arange(group)
        first = 0
        for steps, count in counts.items():
            rows = places[:, first : first + count].flatten()
            cohorts.append(Cohort(net, steps, start, count, first, number * config.prompts + mine.start, rows, spec))
            first += count
        prompt += len(start)
    return cohorts


@torch.no_grad()
def sample_cohort(
    policy: Policy,
    cohort: Cohort,
    config,
    seed: int,
    update: int,
    noisy_K: Sequence[int] | None = None,
    purpose: str = "rollout",
) -> Rollouts:
    """Sample the sequences of a cohort. noisy_K: the steps at which actions are drawn, else those that grpo.noisy_steps names.
    purpose: of their noise.

    Noise depends on (seed, update, prompt, step); mirrored rollouts share it with opposite signs at every step. Steps that are
    not noisy take the mean action and are not trained in this update; up to the first noisy one a group shares its states.
    """
    net, n_steps, scale = cohort.net, cohort.n_steps, policy.scale(cohort.net)
    chosen = torch.randint(n_steps, (1,), generator=generator(seed, "noisy-step", update)).item()
    named = {"all": range(n_steps), "one": [chosen], "last": [n_steps - 1]}
    noisy_K = named[config.noisy_steps] if noisy_K is None else noisy_K
    prompts = range(cohort.prompt, cohort.prompt + len(cohort.start))
    mine, rows = slice(cohort.first, cohort.first + cohort.group), cohort.rows.to(cohort.start.device)
    noisy: list[NoisyStep] = []

    def act(step: int, state: Tensor, old: WeightGaussian) -> Tensor:
        if step not in noisy_K:
            return old.mean
        group = len(rows) // len(state)
        noise = [group_noise(config, old.mean.shape[1], seed, update, prompt, step, purpose)[mine] for prompt in prompts]
        action = shared(old, group)
        taken = action.sample(torch.cat(noise).to(state))
        log_probs, experts = action.log_prob_tokens(taken), chosen_experts(policy)
        noisy.append(NoisyStep(net, step, n_steps - step, state, taken, log_probs, old, group, rows, experts, cohort.spec))
        return taken

    start = cohort.start / scale
    states = [start, *synth_steps(policy, start, n_steps, net, act=act, spec=cohort.spec)]
    return Rollouts(cohort, [(each * scale).repeat_interleave(len(rows) // len(each), 0) for each in states], noisy)


def shared(action: WeightGaussian, group: int) -> WeightGaussian:
    """The Gaussian of each rollout, where `group` rollouts in a row have one."""
    return replace(action, mean=action.mean.repeat_interleave(group, 0)) if group > 1 else action


def group_noise(config, n_dims: int, seed: int, update: int, prompt: int, step: int, purpose: str = "rollout") -> Tensor:
    """Standard normal noise [G dim] of one group at one step."""
    draw = generator(seed, purpose, update, prompt, step)
    if not config.mirrored:
        return standard_noise((config.num_generations, n_dims), draw, torch.device("cpu"))
    return mirrored(standard_noise((config.num_generations // 2, n_dims), draw, torch.device("cpu")))


def mirrored(half: Tensor) -> Tensor:
    """Noise of mirrored pairs [R dim] from that of their first halves [pair dim]: 2j and 2j + 1 have opposite signs."""
    return half.repeat_interleave(2, 0) * torch.tensor([1.0, -1.0]).repeat(len(half)).to(half)[:, None]


@torch.no_grad()
def current_states(
    policy: Policy,
    start: Tensor,
    share: float,
    steps_left: int,
    net: Network,
    draw: torch.Generator,
    spec: Tensor | None = None,
) -> Tensor:
    """Start weights [P weights] of which a share is replaced by what one sampled step makes of them."""
    if not share:
        return start
    n_current, scale = max(1, round(share * len(start))), policy.scale(net)

    def act(step: int, state: Tensor, action: WeightGaussian) -> Tensor:
        return action.sample(standard_noise(tuple(action.mean.shape), draw, start.device))

    told = spec if spec is None else spec[:n_current]
    (made,) = synth_steps(policy, start[:n_current] / scale, 1, net, left=steps_left, act=act, spec=told)
    return torch.cat([made * scale, start[n_current:]])
