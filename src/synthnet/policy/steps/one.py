"""One step at a time, each told that it is the last, while the policy's critic foresees that another one gains."""

from torch import Tensor

from synthnet.engine import Network
from synthnet.policy.policy import Policy
from synthnet.policy.rollout import synthesize_planned

NEEDS_CRITIC = True


def synthesize(policy: Policy, start: Tensor, net: Network) -> tuple[Tensor, Tensor]:
    return synthesize_planned(policy, start, net, lambda step: 1)
