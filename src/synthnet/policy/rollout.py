"""Prompts and rollouts: what an update starts from, and the synth steps W0 → W1 → … → WK that a policy takes from there.

`synth_steps` is the one loop over synth steps; inference, validation, every stage and the sampling of GRPO go through it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from synthnet.engine import AS_THEY_ARE, Network, Variation
from synthnet.policy.action import WeightGaussian
from synthnet.policy.critic import best_k
from synthnet.policy.policy import Policy
from synthnet.seeds import generator

if TYPE_CHECKING:  # synthesis reads no data, and loads nothing that does
    from synthnet.tasks import Task

Act = Callable[[int, Tensor, WeightGaussian], Tensor]  # step from 0, scaled states before it, the policy's Gaussian -> actions
# Start seeds of each stage begin far above those of any zoo, so that no stage sees another's start weights.
FIRST_SEED = {"distil": 1 << 23, "grpo": 1 << 24, "critic": 1 << 26, "role-noise": 1 << 27}


def synth_steps(
    policy: Policy,
    state: Tensor,
    n_steps: int,
    net: Network,
    *,
    left: Tensor | int | None = None,
    act: Act | None = None,
    graded: int | None = None,
    spec: Tensor | None = None,
) -> Iterator[Tensor]:
    """The states after each synth step [net weights], in scale units, from states in scale units.

    The policy is told the steps left, by default n_steps, n_steps − 1, …, 1; `left` [net]: how many before the first step.
    `act`: which actions are taken, by default the means; several for each state branch into as many states in a row.
    `graded`: how many of the last steps a gradient may flow through (None: all). spec [net number]: as the policy is told.
    """
    for step in range(n_steps):
        ahead = n_steps - step if left is None else left - step
        with torch.set_grad_enabled(torch.is_grad_enabled() and (graded is None or n_steps - step <= graded)):
            action = policy(state, ahead, net, spec)
            taken = action.mean if act is None else act(step, state, action)
            if len(taken) > len(state):
                state = state.repeat_interleave(len(taken) // len(state), 0)
            state = policy.land(state, taken, ahead, net, spec)
        yield state


def rollout(
    policy: Policy,
    start: Tensor,
    n_steps: int,
    net: Network,
    act: Act | None = None,
    graded: int | None = None,
    spec: Tensor | None = None,
) -> list[Tensor]:
    """The weight-state sequence [W1 … WK], each [net weights] in raw units, from start weights [net weights]."""
    scale = policy.scale(net)
    return [state * scale for state in synth_steps(policy, start / scale, n_steps, net, act=act, graded=graded, spec=spec)]


def with_noise(noise: Callable[[int], Tensor]) -> Act:
    """Actions with sigma times `noise(step)` [net dim] added."""
    return lambda step, _, action: action.sample(noise(step))


@torch.no_grad()
def synthesize_flat(
    policy: Policy, start: Tensor, n_steps: int, net: Network, spec: Tensor | None = None, chunk: int = 256
) -> Tensor:
    """Mean rollouts of many nets: weights [net step weights] of W1..WK, `chunk` nets at a time. spec [net number]."""
    specs = [None] * -(-len(start) // chunk) if spec is None else spec.split(chunk)
    pairs = zip(start.split(chunk), specs, strict=True)
    return torch.cat([torch.stack(rollout(policy, weights, n_steps, net, spec=told), dim=1) for weights, told in pairs])


@torch.no_grad()
def synthesize_planned(policy: Policy, start: Tensor, net: Network, horizon: Callable[[int], int]) -> tuple[Tensor, Tensor]:
    """WK [net weights] with K chosen for each net by the policy's critic, and K [net]; at most k_max steps.

    Before every step, from 0, the critic is asked again which number of further steps up to `horizon(step)` is best; the policy
    is told that many are left, and where it is none the net is done.
    """
    scale = policy.scale(net)
    state, taken = start / scale, torch.zeros(len(start), dtype=torch.long, device=start.device)
    active = torch.arange(len(start), device=start.device)
    for step in range(policy.config.k_max):
        left = best_k(policy.judge(state[active], net)[:, : horizon(step) + 1])
        active, left = active[left > 0], left[left > 0]
        if not len(active):
            break
        state[active] = next(synth_steps(policy, state[active], 1, net, left=left))
        taken[active] += 1
    return state * scale, taken


class Prompt(NamedTuple):
    """n_steps synth steps from `start` [net weights]; images [example feature] and labels [example] or [example class]. spec
    [net number]: which variant of the task each net is for, where that has any; then images [net example feature] and labels
    are each net's."""

    n_steps: int
    start: Tensor
    images: Tensor
    labels: Tensor
    spec: Tensor | None = None

    def share(self, rows: slice | Tensor) -> "Prompt":
        """That of some of the nets, each as often as it is named."""
        if self.spec is None:
            return self._replace(start=self.start[rows])
        own = (self.images[rows], self.labels[rows]) if len(self.images) else (self.images, self.labels)
        return Prompt(self.n_steps, self.start[rows], *own, self.spec[rows])

    def of_net(self, number: int) -> tuple[Tensor, Tensor]:
        """The images and labels of one net [example …]."""
        return (self.images, self.labels) if self.spec is None else (self.images[number], self.labels[number])


def draw_prompt(
    stage: str,
    task: "Task",
    split: str,
    place: torch.device,
    steps: Sequence[int],
    n_starts: int,
    n_images: int,
    seed: int,
    update: int,
    labels: Tensor | None = None,
    vary: Variation = AS_THEY_ARE,
) -> Prompt:
    """The prompt of one update, on images of a split: a pure function of (stage, seed, update).

    Each start state is used in one update only. `labels`: other ones than the data's own. `vary`: what becomes of the images.
    """
    draw = generator(seed, stage, update)
    inputs, own = task.examples(split) if task.data is not None else (torch.empty(0), torch.empty(0))
    labels = own if labels is None else labels
    n_steps = steps[torch.randint(len(steps), (1,), generator=draw).item()]
    first = FIRST_SEED[stage] + update * n_starts
    ids = list(range(first, first + n_starts))
    start, spec = task.draw_start("zoo", ids).to(place), task.draw_spec("zoo", ids)
    chosen = torch.randperm(len(inputs), generator=draw)[:n_images]
    images = vary(inputs[chosen].to(place), draw) if len(inputs) else inputs
    spec = spec if spec is None else spec.to(place)
    return Prompt(n_steps, start, *task.varied(images, labels[chosen.to(labels.device)].to(place), spec), spec)
