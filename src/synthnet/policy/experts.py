"""Do experts divide the work by role? Which expert serves which tokens, and how much a token's role tells about its expert.

The role of a token is where it stands in the net: the layer of a hidden unit, the outputs, or the kind of tensor that a chunk
was cut from. No module is chosen by role; what experts make of roles is learned, and measured here.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from synthnet.engine import Network
from synthnet.policy.moe import MixtureOfExperts
from synthnet.policy.policy import Policy
from synthnet.policy.rollout import synthesize_flat
from synthnet.policy.tokens import TokenLayout

ROLE_COLUMNS = 4  # of a token's descriptor; the further ones tell tokens of one role apart
STEPS = 2


def roles(layout: TokenLayout) -> Tensor:
    """The role of each unit token [token], by number: layers in order of depth, then the outputs."""
    return layout.descriptors[:, :ROLE_COLUMNS].unique(dim=0, return_inverse=True)[1]


def choices(policy: Policy, net: Network, start: Tensor, spec: Tensor | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """For each mixture that unit tokens pass: the expert and the role of each token [token] over two synth steps from start
    weights [net weights]; nothing where there is no mixture."""
    latents = (".read.", ".think.")  # what passes these are no tokens of the net
    parts = [(n, m) for n, m in policy.trunk.named_modules() if isinstance(m, MixtureOfExperts)]
    parts = [(n, m) for n, m in parts if not any(part in n for part in latents)]
    if not parts:
        return {}
    layout, found = policy.layout(net), {}
    role = roles(layout)

    def watch(name: str) -> Callable:
        def hook(module: MixtureOfExperts, inputs: tuple[Tensor], _) -> None:
            x = inputs[0]
            expert = module.gate(x[:, : layout.n_tokens]).argmax(-1)
            found.setdefault(name, []).append((expert.flatten(), role.expand(len(x), -1).flatten()))

        return hook

    handles = [m.register_forward_hook(watch(n)) for n, m in parts]
    try:
        synthesize_flat(policy, start, STEPS, net, spec)
    finally:
        for handle in handles:
            handle.remove()
    return {name: tuple(map(torch.cat, zip(*parts, strict=True))) for name, parts in found.items()}


def loads(expert: Tensor, role: Tensor) -> dict[int, list[float]]:
    """Role -> the share of its tokens that each expert gets, from ids [token]."""
    n = int(expert.max()) + 1
    return {r: torch.bincount(expert[role == r], minlength=n).div((role == r).sum()).tolist() for r in role.unique().tolist()}


def information(expert: Tensor, role: Tensor) -> float:
    """I(expert; role) / H(role), from ids [token]: 0 where experts ignore roles, 1 where the expert names the role."""
    joint = torch.zeros(int(expert.max()) + 1, int(role.max()) + 1, dtype=torch.float64)
    joint.index_put_((expert.cpu(), role.cpu()), torch.ones(len(expert), dtype=torch.float64), accumulate=True)
    joint /= joint.sum()
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    shared = (joint * (joint / apart).log()).nan_to_num(0.0).sum()
    entropy = -(joint.sum(0) * joint.sum(0).log()).nan_to_num(0.0).sum()
    return (shared / entropy).item() if entropy > 0 else 0.0


def role_metrics(
    policy: Policy, networks: Sequence[Network], starts: Sequence[Tensor], specs: Sequence[Tensor | None]
) -> dict[str, float]:
    """`moe/information`, the largest over mixtures, and `moe/load/role…`, the share of the busiest expert for each role, mean
    over mixtures and networks that have it; nothing for a policy without mixtures."""
    found: dict[str, list[float]] = {}
    for each in zip(networks, starts, specs, strict=True):
        for expert, role in choices(policy, *each).values():
            found.setdefault("information", []).append(information(expert, role))
            for number, shares in loads(expert, role).items():
                found.setdefault(f"load/role{number}", []).append(max(shares))
    most = {"moe/information": max(found.pop("information"))} if found else {}
    return most | {f"moe/{name}": sum(values) / len(values) for name, values in found.items()}
