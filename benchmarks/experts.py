"""How the experts of a policy divide their work: expert load by role, and how much the role tells about the expert.

python benchmarks/experts.py POLICY --task TASK [--seeds 32] -o FILE.json

Role: the layer that a unit token belongs to (and the fixed token), over all members of the task and K = 2 steps. The normalised
mutual information I(expert; role) / H(role) is 0 where experts ignore roles and 1 where the expert names the role; the chance
level is the same figure after roles are shuffled.
"""

import argparse
import json

import torch
from torch import Tensor

from synthnet.backbones._moe import MixtureOfExperts
from synthnet.files import write_atomic
from synthnet.policy import Policy, load_policy
from synthnet.report import table
from synthnet.rollout import synthesize_flat
from synthnet.seeds import generator
from synthnet.synthesis import policy_path
from synthnet.tasks import Task, build_task


def information(expert: Tensor, role: Tensor) -> float:
    """I(expert; role) / H(role), from ids [token]."""
    joint = torch.zeros(int(expert.max()) + 1, int(role.max()) + 1, dtype=torch.float64)
    joint.index_put_((expert, role), torch.ones(len(expert), dtype=torch.float64), accumulate=True)
    joint /= joint.sum()
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    shared = (joint * (joint / apart).log()).nan_to_num(0.0).sum()
    entropy = -(joint.sum(0) * joint.sum(0).log()).nan_to_num(0.0).sum()
    return (shared / entropy).item() if entropy > 0 else 0.0


def choices(policy: Policy, member: Task, n_seeds: int) -> dict[str, tuple[Tensor, Tensor]]:
    """For each mixture that unit tokens pass: the expert and the role of each token, [token] each."""
    layout, found = policy.layout(member.network), {}
    _, role = layout.descriptors.unique(dim=0, return_inverse=True)

    def watch(name: str):
        def hook(module: MixtureOfExperts, inputs: tuple[Tensor], _) -> None:
            x = inputs[0]
            if x.shape[1] >= layout.n_tokens and not ("read" in name or "think" in name):
                expert = module.gate(x[:, : layout.n_tokens]).argmax(-1)
                found.setdefault(name, []).append((expert.flatten(), role.expand(len(x), -1).flatten()))

        return hook

    mixtures = [(n, m) for n, m in policy.trunk.named_modules() if isinstance(m, MixtureOfExperts)]
    handles = [module.register_forward_hook(watch(name)) for name, module in mixtures]
    synthesize_flat(policy, member.draw_start("val", list(range(n_seeds))), 2, member.network)
    for handle in handles:
        handle.remove()
    return {name: tuple(map(torch.cat, zip(*parts, strict=True))) for name, parts in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("policy")
    parser.add_argument("--task", required=True)
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    policy, task = load_policy(policy_path(options.policy)), build_task(options.task)
    report, rows = {}, []
    for member in task.members:
        for name, (expert, role) in choices(policy, member, options.seeds).items():
            shuffled = role[torch.randperm(len(role), generator=generator(0, "roles"))]
            loads = [torch.bincount(expert[role == r]).double().div((role == r).sum()).tolist() for r in role.unique()]
            row = {"information": information(expert, role), "chance": information(expert, shuffled), "load_by_role": loads}
            report.setdefault(member.arch.label, {})[name] = row
            loads = "; ".join("/".join(f"{100 * share:.0f}" for share in load) for load in loads)
            rows.append([member.arch.label, name, f"{row['information']:.2f}", f"{row['chance']:.3f}", loads])
    write_atomic(options.out, json.dumps({"policy": options.policy, "members": report}, indent=1) + "\n")
    table("experts and roles", ["net", "mixture", "information", "chance", "load by role, %"], rows)


if __name__ == "__main__":
    main()
