"""What every stage measures on val with unseen seeds: accuracy by synth step, and how much nets of different seeds differ."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from synthnet.errors import InputError
from synthnet.functional import Network, score
from synthnet.identity import aligned_distance
from synthnet.policy import Policy
from synthnet.population import grow_twins
from synthnet.rollout import synthesize_flat
from synthnet.tasks import Task

COLLAPSE_RATIO = 0.8


@dataclass(frozen=True)
class Validation:
    """A fixed set of unseen start weights [net weights] of purpose `val`, and the val split."""

    network: Network
    start: Tensor
    inputs: Tensor
    labels: Tensor
    steps: tuple[int, ...]

    @classmethod
    def of_task(cls, task: Task, n_seeds: int, steps: list[int], device: torch.device) -> "Validation":
        inputs, labels = (part.to(device) for part in task.data("val"))
        start = task.draw_start("val", list(range(n_seeds))).to(device)
        return cls(task.network, start, inputs, labels, tuple(steps))

    def finals(self, policy: Policy) -> dict[int, Tensor]:
        """WK [net weights] for each K."""
        return {k: synthesize_flat(policy, self.start, k, self.network)[:, -1] for k in self.steps}

    def __call__(self, policy: Policy) -> dict:
        """The metrics of what the policy makes of the start weights."""
        return self.metrics(self.finals(policy))

    def metrics(self, finals: dict[int, Tensor]) -> dict:
        """Mean accuracy and loss of WK for each K; `score` is the mean over K of accuracy − 0.1 · loss, so loss breaks ties."""
        metrics, scores = {}, []
        for n_steps, final in finals.items():
            accuracies, losses = score(self.network, final, self.inputs, self.labels)
            metrics[f"accuracy_k{n_steps}"] = accuracies.mean().item()
            metrics[f"loss_k{n_steps}"] = losses.mean().item()
            scores.append(metrics[f"accuracy_k{n_steps}"] - 0.1 * min(metrics[f"loss_k{n_steps}"], 10.0))
        return {**metrics, "score": sum(scores) / len(scores)}

    def best_steps(self, policy: Policy) -> int:
        """The K in 1..k_max with the best mean val accuracy; the smaller K wins a tie of a tenth of a point."""
        accuracies = []
        for n_steps in range(1, policy.config.k_max + 1):
            final = synthesize_flat(policy, self.start, n_steps, self.network)[:, -1]
            accuracies.append(score(self.network, final, self.inputs, self.labels)[0].mean().item())
        return next(k for k, value in enumerate(accuracies, 1) if value >= max(accuracies) - 1e-3)


class CollapseWatch:
    """Validation that also measures the aligned distance between outputs of different seeds, as a ratio to their SGD twins'.

    Below 0.8 after a tenth of the updates it warns once, or, with `stop`, ends the run: an equivariant policy can collapse
    to one solution up to permutation without losing accuracy.
    """

    def __init__(self, task: Task, validation: Validation, stop: bool):
        net = task.network
        self.validation, self.stop, self.warned = validation, stop, False
        self.symmetry = net.symmetry
        self.reference = aligned_distance(self.symmetry, grow_twins(task, validation.start))

    def __call__(self, policy: Policy, progress: float) -> dict:
        """Metrics of the validation and `aligned_ratio_k…` for each K; `progress` is the share of updates done."""
        finals = self.validation.finals(policy)
        metrics = self.validation.metrics(finals)
        for n_steps, final in finals.items():
            metrics[f"aligned_ratio_k{n_steps}"] = aligned_distance(self.symmetry, final) / self.reference
        lowest = min(value for name, value in metrics.items() if name.startswith("aligned_ratio"))
        if progress >= 0.1 and lowest < COLLAPSE_RATIO and not self.warned:
            message = (
                f"outputs of different seeds are {lowest:.2f} times as far apart as SGD nets (below {COLLAPSE_RATIO}): "
                "the policy may be collapsing to one solution"
            )
            if self.stop:
                raise InputError(message + "; stopped, as stop_on_collapse asks. The last checkpoint is kept")
            warnings.warn(message, stacklevel=2)
            self.warned = True
        return metrics
