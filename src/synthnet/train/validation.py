"""What every stage measures on val with unseen seeds: accuracy by synth step, and how much nets of different seeds differ."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from synthnet.errors import InputError
from synthnet.nets import aligned_distance
from synthnet.policy import Policy, role_metrics, synthesize_flat
from synthnet.tasks import Task, judge, twins_on_val

COLLAPSE_RATIO = 0.8
VAL_DRAWS = 8  # of a reward, while training
WATCHED_SEEDS = 64  # twins that the reference is measured on


@dataclass(frozen=True)
class Validation:
    """A fixed set of unseen start weights [net weights] of purpose `val` for each member of a task, and, where it has variants,
    as many specs [net number], judged on its val split."""

    members: tuple[Task, ...]
    starts: tuple[Tensor, ...]
    data: dict[str, tuple[Tensor, Tensor]]
    steps: tuple[int, ...]
    specs: tuple[Tensor | None, ...]

    @classmethod
    def of_task(cls, task: Task, n_seeds: int, steps: list[int], device: torch.device) -> "Validation":
        starts = tuple(member.draw_start("val", list(range(n_seeds))).to(device) for member in task.members)
        data = {
            member.data_set: tuple(part.to(device) for part in member.examples("val"))
            for member in task.members
            if member.data is not None
        }
        specs = tuple(member.draw_spec("val", list(range(n_seeds))) for member in task.members)
        return cls(task.members, starts, data, tuple(steps), tuple(s if s is None else s.to(device) for s in specs))

    def examples(self, member: Task) -> tuple[Tensor, Tensor]:
        """Inputs and labels of a member's val split."""
        return self.data[member.data_set]

    @property
    def labels(self) -> list[str]:
        """What members are called in the log: by their nets, or their tasks, or both, whichever tells them apart."""
        archs = [member.arch.label for member in self.members]
        names = [member.name for member in self.members]
        both = [f"{name}-{arch}" for name, arch in zip(names, archs, strict=True)]
        return next(each for each in (archs, names, both) if len(set(each)) == len(each) or each is both)

    def judge(self, member: Task, nets: Tensor, spec: Tensor | None) -> tuple[Tensor, Tensor]:
        """Metric and loss of each net [net weights] on val; of rewards alone, their mean over draws, and no loss."""
        if member.data is None:
            rewards = member.mean_reward(nets, VAL_DRAWS, spec)
            return rewards, torch.zeros_like(rewards)
        return judge(member, nets, *self.examples(member), spec)

    def sequences(self, policy: Policy, n_steps: int) -> list[Tensor]:
        """W1..WK [net step weights] of each member."""
        return [
            synthesize_flat(policy, start, n_steps, member.network, spec)
            for member, start, spec in zip(self.members, self.starts, self.specs, strict=True)
        ]

    def finals(self, policy: Policy, n_steps: int) -> list[Tensor]:
        """WK [net weights] of each member."""
        return [made[:, -1] for made in self.sequences(policy, n_steps)]

    def __call__(self, policy: Policy) -> dict:
        """The metrics of what the policy makes of the start weights."""
        return self.metrics({k: self.finals(policy, k) for k in self.steps}) | self.experts(policy)

    def experts(self, policy: Policy) -> dict[str, float]:
        """What the policy's experts make of roles, on a few of the start weights (`policy.experts.role_metrics`)."""
        few = [spec if spec is None else spec[:8] for spec in self.specs]
        return role_metrics(policy, [member.network for member in self.members], [start[:8] for start in self.starts], few)

    def metrics(self, finals: dict[int, list[Tensor]]) -> dict:
        """Accuracy and loss of WK for each K, mean over nets and then over members, and each member's accuracy where there are
        several; `score` is the mean over K of accuracy − 0.1 · loss, so loss breaks ties. A loss above that of guessing counts
        as guessing: nets that have learnt something and are too sure of it are better than nets that know nothing."""
        metrics, scores = {}, []
        for n_steps, parts in finals.items():
            scored = [self.judge(*each) for each in zip(self.members, parts, self.specs, strict=True)]
            accuracies, losses = ([part[i].mean().item() for part in scored] for i in (0, 1))
            accuracy, loss = sum(accuracies) / len(scored), sum(losses) / len(scored)
            metrics |= {f"accuracy_k{n_steps}": accuracy, f"loss_k{n_steps}": loss}
            if len(scored) > 1:
                metrics |= {f"accuracy_k{n_steps}/{x}": a for x, a in zip(self.labels, accuracies, strict=True)}
            scores.append(self.members[0].objective.ranked(accuracy, loss))
        return {**metrics, "score": sum(scores) / len(scores)}

    def best_steps(self, policy: Policy) -> int:
        """The K in 1..k_max with the best mean val accuracy; the smaller K wins a tie of a tenth of a point."""
        accuracies = []
        for n_steps in range(1, policy.config.k_max + 1):
            accuracies.append(self.metrics({n_steps: self.finals(policy, n_steps)})[f"accuracy_k{n_steps}"])
        return next(k for k, value in enumerate(accuracies, 1) if value >= max(accuracies) - 1e-3)


class CollapseWatch:
    """Validation that also measures the aligned distance between outputs of different seeds, as a ratio to their SGD twins'.

    Below 0.8 after a tenth of the updates it warns once, or, with `stop_on_collapse`, ends the run: an equivariant policy
    can collapse to one solution up to permutation without losing accuracy. Of a family, the lowest ratio of any member counts.
    """

    def __init__(self, validation: Validation, config=None):
        """`config.stop_on_collapse`, where there is one, is read at every validation."""
        self.validation, self.config, self.warned = validation, config, False
        self.twins = [
            twins_on_val(member, min(WATCHED_SEEDS, len(start)), start.device)
            for member, start in zip(validation.members, validation.starts, strict=True)
        ]
        self.references = [twins["distance"] for twins in self.twins]

    def __call__(self, policy: Policy, progress: float) -> dict:
        """`judge` what the policy makes of the start weights."""
        return self.judge(policy, {k: self.validation.finals(policy, k) for k in self.validation.steps}, progress)

    def behind(self, metrics: dict) -> list[float]:
        """How much of the metric on val each of several members lacks to its twins, the mean over K; 0 where it is ahead."""
        steps, labels = self.validation.steps, self.validation.labels
        made = [sum(metrics[f"accuracy_k{k}/{label}"] for k in steps) / len(steps) for label in labels]
        return [max(twins["metric"] - own, 0.0) for twins, own in zip(self.twins, made, strict=True)]

    def judge(self, policy: Policy, finals: dict[int, list[Tensor]], progress: float) -> dict:
        """Metrics of the validation and `aligned_ratio_k…` for each K, from WK [net weights] of each member by K that the
        policy made; `progress` is the share of updates done."""
        metrics = self.validation.metrics(finals) | self.validation.experts(policy)
        for n_steps, parts in finals.items():
            metrics[f"aligned_ratio_k{n_steps}"] = min(
                aligned_distance(member.network.alignment, final) / reference
                for member, final, reference in zip(self.validation.members, parts, self.references, strict=True)
            )
        lowest = min(value for name, value in metrics.items() if name.startswith("aligned_ratio"))
        stop = self.config is not None and self.config.stop_on_collapse
        if progress >= 0.1 and lowest < COLLAPSE_RATIO and (stop or not self.warned):
            message = (
                f"outputs of different seeds are {lowest:.2f} times as far apart as SGD nets (below {COLLAPSE_RATIO}): "
                "the policy may be collapsing to one solution"
            )
            if stop:
                raise InputError(message + "; stopped, as stop_on_collapse asks. The last checkpoint is kept")
            warnings.warn(message, stacklevel=2)
            self.warned = True
        return metrics
