"""Guards of a run: limits on what each validation measures, and what happens beyond them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from synthnet.errors import InputError
from synthnet.policy.policy import Policy
from synthnet.train.validation import Validation

ACTIONS = ("stop", "rollback")


@dataclass
class GuardConfig:
    """Limits, None for no limit: kl (mean KL per weight of the first step from the policy that the stage started from, in
    nats), norm (root mean square of WK over that of W0, in scale units), drop (how far the validation score may fall below
    its best). action: stop, or rollback to the best policy so far with half the learning rate, `rollbacks` times before it
    stops."""

    kl: float | None = None
    norm: float | None = 10.0
    drop: float | None = 0.1
    action: str = "rollback"
    rollbacks: int = 3

    def check(self) -> None:
        if self.action not in ACTIONS:
            raise InputError(f"guard.action must be one of {', '.join(ACTIONS)}, got {self.action!r}")
        for name in ("kl", "norm", "drop"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"guard.{name} must be positive or null, got {value}")
        if self.rollbacks < 0:
            raise InputError(f"guard.rollbacks must not be negative, got {self.rollbacks}")

    def reason(self, metrics: dict[str, float], best_score: float) -> str | None:
        """Why a validation lies beyond a limit, or None. Metrics that were not measured are not limited."""
        for name in ("kl", "norm"):
            limit, value = getattr(self, name), metrics.get(f"drift/{name}")
            if limit is not None and value is not None and not value <= limit:
                return f"{name} {value:.4g} is beyond its limit {limit:g}"
        if self.drop is not None and not metrics["score"] >= best_score - self.drop:
            return f"the score {metrics['score']:.4f} fell by more than {self.drop:g} below its best, {best_score:.4f}"
        return None


@torch.no_grad()
def drift(policy: Policy, frozen: Policy, validation: Validation, finals: list[Tensor]) -> dict[str, float]:
    """How far a policy has moved from the frozen one: mean KL per action dim of the first step, and the size of WK over that of
    W0; the largest of any member. `finals`: WK [net weights] of each member for the largest K."""
    kls, norms, n_steps = [], [], max(validation.steps)
    for member, start, final in zip(validation.members, validation.starts, finals, strict=True):
        net, scale = member.network, policy.scale(member.network)
        ours, theirs = (each(start / scale, n_steps, net) for each in (policy, frozen))
        kls.append((ours.kl(theirs).mean() / ours.mean.shape[1]).item())
        norms.append(((final / scale).norm() / (start / scale).norm()).item())
    return {"drift/kl": max(kls), "drift/norm": max(norms)}
