"""Guards of a run: limits on what each validation measures, and what happens beyond them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from synthnet.policy import Policy, WeightGaussian
from synthnet.settings import setting
from synthnet.train.validation import Validation

ACTIONS = ("stop", "rollback")


@dataclass
class GuardConfig:
    """Limits on what a validation measures (null: none), and what happens beyond them."""

    kl: float | None = setting(
        None,
        "mean KL of the first step from the policy that the stage began with",
        (1e-12, 1e9),
        unit="nats a weight",
        hot=True,
    )
    norm: float | None = setting(10.0, "root mean square of WK over that of W0, in scale units", (1e-3, 1e9), hot=True)
    drop: float | None = setting(0.1, "how far the score may fall below its best", (1e-6, 1e3), hot=True)
    action: str = setting("rollback", "to the best policy, with half the rate or the knobs before", choices=ACTIONS, hot=True)
    rollbacks: int = setting(3, "how many before it stops", (0, 1000), hot=True)

    def reason(self, metrics: dict[str, float], best_score: float) -> str | None:
        """Why a validation lies beyond a limit, or None. Metrics that were not measured are not limited."""
        for name in ("kl", "norm"):
            limit, value = getattr(self, name), metrics.get(f"drift/{name}")
            if limit is not None and value is not None and not value <= limit:
                return f"{name} {value:.4g} is beyond its limit {limit:g}"
        if self.drop is not None and not metrics["score"] >= best_score - self.drop:
            return f"the score {metrics['score']:.4f} fell by more than {self.drop:g} below its best, {best_score:.4f}"
        return None


@dataclass(frozen=True)
class Anchor:
    """The policy that a stage began with, as far as drift is measured: what it does first with the validation's starts."""

    validation: Validation
    actions: list[WeightGaussian]

    @classmethod
    @torch.no_grad()
    def of(cls, policy: Policy, validation: Validation) -> "Anchor":
        n_steps = max(validation.steps)
        parts = zip(validation.members, validation.starts, validation.specs, strict=True)
        return cls(validation, [policy(start / policy.scale(m.network), n_steps, m.network, spec) for m, start, spec in parts])

    @torch.no_grad()
    def drift(self, policy: Policy, finals: list[Tensor]) -> dict[str, float]:
        """How far a policy has moved: mean KL per action dim of the first step, and the size of WK over that of W0; the largest
        of any member. `finals`: WK [net weights] of each member for the largest K."""
        kls, norms, n_steps = [], [], max(self.validation.steps)
        mine = self.validation
        of_members = zip(mine.members, mine.starts, mine.specs, self.actions, finals, strict=True)
        for member, start, spec, theirs, final in of_members:
            net, scale = member.network, policy.scale(member.network)
            ours = policy(start / scale, n_steps, net, spec)
            kls.append((ours.kl(theirs).mean() / ours.mean.shape[1]).item())
            norms.append(((final / scale).norm() / (start / scale).norm()).item())
        return {"drift/kl": max(kls), "drift/norm": max(norms)}
