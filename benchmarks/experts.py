"""How the experts of a policy divide their work: expert load by role, and how much the role tells about the expert.

python benchmarks/experts.py POLICY --task TASK [--seeds 32] -o FILE.json

Role: the layer that a unit token belongs to (and the fixed token), over all members of the task and K = 2 steps. The normalised
mutual information I(expert; role) / H(role) is 0 where experts ignore roles and 1 where the expert names the role; the chance
level is the same figure after roles are shuffled.
"""

import argparse
import json

import torch

from synthnet.bundled import load_policy
from synthnet.console import table
from synthnet.files import write_atomic
from synthnet.policy.experts import choices, information, loads
from synthnet.seeds import generator
from synthnet.tasks import build_task


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("policy")
    parser.add_argument("--task", required=True)
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    policy, task = load_policy(options.policy), build_task(options.task)
    report, rows = {}, []
    for member in task.members:
        start = member.draw_start("val", list(range(options.seeds)))
        for name, (expert, role) in choices(policy, member.network, start).items():
            shuffled = role[torch.randperm(len(role), generator=generator(0, "roles"))]
            by_role = list(loads(expert, role).values())
            row = {"information": information(expert, role), "chance": information(expert, shuffled), "load_by_role": by_role}
            report.setdefault(member.arch.label, {})[name] = row
            shown = "; ".join("/".join(f"{100 * share:.0f}" for share in load) for load in by_role)
            rows.append([member.arch.label, name, f"{row['information']:.2f}", f"{row['chance']:.3f}", shown])
    write_atomic(options.out, json.dumps({"policy": options.policy, "members": report}, indent=1) + "\n")
    table("experts and roles", ["net", "mixture", "information", "chance", "load by role, %"], rows)


if __name__ == "__main__":
    main()
