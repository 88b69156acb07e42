"""Which part of a policy a stage trains: all of it, its heads, its FiLM conditioning, or low-rank changes of its matrices."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from synthnet.errors import InputError
from synthnet.policy.policy import Policy
from synthnet.seeds import generator

PARTS = ("all", "head", "film", "lora")
NAMED = {"head": ("trunk.head", "trunk.edge_head"), "film": (".film.",), "code": ("trunk.code_head",)}


class LowRank(nn.Module):
    """W + B·A with A [rank in] random and B [out rank] zero at first (LoRA, Hu et al. 2021, arXiv 2106.09685)."""

    def __init__(self, weight: Tensor, rank: int, draw: torch.Generator):
        super().__init__()
        a = torch.randn((rank, weight.shape[1]), generator=draw) / math.sqrt(weight.shape[1])
        self.a, self.b = nn.Parameter(a.to(weight)), nn.Parameter(weight.new_zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


def freeze_all_but(policy: Policy, part: str, rank: int, seed: int) -> None:
    """Let a stage train only `part` of a policy; a policy over codes trains its code head alone, whatever is asked for.

    Raises: InputError for an unknown part, or one that the policy's trunk does not have.
    """
    if part not in PARTS:
        raise InputError(f"grpo.trainable must be one of {', '.join(PARTS)}, got {part!r}")
    if policy.code_dim:
        part = "code"
    if part == "all":
        return
    policy.requires_grad_(False)
    if part == "lora":
        matrices = [(n, m) for n, m in policy.trunk.named_modules() if isinstance(m, nn.Linear) and min(m.weight.shape) > rank]
        for name, module in matrices:
            low = LowRank(module.weight, rank, generator(seed, "lora", name))
            parametrize.register_parametrization(module, "weight", low)
            module.parametrizations.weight.original.requires_grad_(False)
        chosen = [p for n, p in policy.named_parameters() if n.endswith((".a", ".b"))]
    else:
        chosen = [p for n, p in policy.named_parameters() if any(key in n for key in NAMED[part])]
    if not chosen:
        raise InputError(f"grpo.trainable={part}: the policy's trunk, {policy.config.backbone['name']}, has no such part")
    for parameter in chosen:
        parameter.requires_grad_(True)


def merged(policy: Policy) -> Policy:
    """The policy with low-rank changes added into its matrices: itself where there are none, else a plain one."""
    changed = {name: module.weight for name, module in policy.named_modules() if parametrize.is_parametrized(module)}
    if not changed:
        return policy
    plain = Policy(policy.config, policy.archs, policy.vocabulary)
    tensors = {name: value for name, value in policy.state_dict().items() if ".parametrizations." not in name}
    plain.load_state_dict({**tensors, **{f"{name}.weight": weight.detach() for name, weight in changed.items()}})
    plain.record, plain.data_sets, plain.variants = policy.record, policy.data_sets, policy.variants
    return plain.to(policy.device).eval()
