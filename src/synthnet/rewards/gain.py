"""What the sequence gained beyond its best state so far, summed over steps: losing and regaining earns nothing.

Plain positive differences could be farmed by a policy that breaks a net in order to mend it.
"""

from torch import Tensor

from synthnet.rewards import Scored

NEEDS_STEPS = True


def reward(scored: Scored) -> Tensor:
    quality = scored.quality()
    best = quality.cummax(1).values
    return (quality[:, 1:] - best[:, :-1]).clamp_min(0).sum(1)
