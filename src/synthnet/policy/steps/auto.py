"""As many steps as the policy's critic thinks best, planned anew before each: the plan may change on the way."""

from torch import Tensor

from synthnet.engine import Network
from synthnet.policy.policy import Policy
from synthnet.policy.rollout import synthesize_planned

NEEDS_CRITIC = True


def synthesize(policy: Policy, start: Tensor, net: Network) -> tuple[Tensor, Tensor]:
    return synthesize_planned(policy, start, net, lambda step: policy.config.k_max - step)
