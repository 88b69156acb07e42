"""What the sequence gained beyond its best state so far, summed over steps, minus what its last state has lost again.

Plain positive differences could be farmed by a policy that breaks a net in order to mend it (Ng, Harada and Russell 1999);
beyond the best so far nothing is earned twice, and what is not kept until the end is taken back.
"""

from torch import Tensor

from synthnet.grpo.scored import Scored

NEEDS_STEPS = True
FLOOR = -1.5


def reward(scored: Scored) -> Tensor:
    quality = scored.quality()
    best = quality.cummax(1).values
    return (quality[:, 1:] - best[:, :-1]).clamp_min(0).sum(1) - (best[:, -1] - quality[:, -1])
