"""How the experts of a policy divide their work: expert load by role, and how much the role tells about the expert.

python benchmarks/experts.py POLICY --task TASK [--set KEY=JSON] [--seeds 32] [--figure FILE.png] -o FILE.json

Role: the layer that a unit token belongs to (and the fixed token), over all members of the task and K = 2 steps. The normalised
mutual information I(expert; role) / H(role) is 0 where experts ignore roles and 1 where the expert names the role; the chance
level is the same figure after roles are shuffled. The figure has a panel for each mixture, a row for each net and a column for
each role: which expert takes most of its tokens, and which share of them, in percent.
"""

import argparse
import json

import torch
from family import task_of

from synthnet.bundled import load_policy
from synthnet.console import figure_library, table
from synthnet.files import write_atomic
from synthnet.policy.experts import choices, information, loads
from synthnet.seeds import generator


def draw(report: dict[str, dict[str, dict]], path: str) -> None:
    """Member -> mixture -> its row, as panels."""
    _, plt = figure_library()
    mixtures = list(next(iter(report.values())))
    most = max(len(row["load_by_role"]) for rows in report.values() for row in rows.values())
    colours = torch.tensor([plt.get_cmap("tab10")(number)[:3] for number in range(10)])
    figure, panels = plt.subplots(1, len(mixtures), figsize=(2.2 + 2.1 * len(mixtures), 0.9 + 0.32 * len(report)), sharey=True,
                                  layout="constrained", squeeze=False)  # fmt: skip
    for number, (mixture, axes) in enumerate(zip(mixtures, panels[0], strict=True), 1):
        cells = torch.ones(len(report), most, 3)
        for place, rows in enumerate(report.values()):
            for role, load in enumerate(rows[mixture]["load_by_role"]):
                busiest = max(range(len(load)), key=load.__getitem__)
                cells[place, role] = 1 - load[busiest] * (1 - colours[busiest])
                axes.text(role, place, f"{100 * load[busiest]:.0f}", ha="center", va="center", fontsize=7)
        axes.imshow(cells, aspect="auto")
        told = sum(rows[mixture]["information"] for rows in report.values()) / len(report)
        axes.set(title=f"block {number}: tells {told:.2f} of the role", xticks=range(most), xlabel="layer, the outputs last")
        axes.title.set_fontsize(9)
        axes.set_xticklabels(range(1, most + 1))
    experts = max(len(load) for rows in report.values() for row in rows.values() for load in row["load_by_role"])
    keys = [plt.Line2D([], [], color=tuple(colours[e].tolist()), lw=6, label=f"expert {e + 1}") for e in range(experts)]
    figure.legend(handles=keys, loc="outside right upper", frameon=False)
    panels[0][0].set_yticks(range(len(report)), list(report), fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("policy")
    parser.add_argument("--task", required=True)
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=JSON", help="settings of the task")
    parser.add_argument("--figure")
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    policy, task = load_policy(options.policy), task_of(options.task, options.set)
    report, rows = {}, []
    for member in task.members:
        label = f"{member.name} {member.arch.label}" if task.joint else member.arch.label
        start = member.draw_start("val", list(range(options.seeds)))
        for name, (expert, role) in choices(policy, member.network, start).items():
            shuffled = role[torch.randperm(len(role), generator=generator(0, "roles"))]
            by_role = list(loads(expert, role).values())
            row = {"information": information(expert, role), "chance": information(expert, shuffled), "load_by_role": by_role}
            report.setdefault(label, {})[name] = row
            shown = "; ".join("/".join(f"{100 * share:.0f}" for share in load) for load in by_role)
            rows.append([label, name, f"{row['information']:.2f}", f"{row['chance']:.3f}", shown])
    write_atomic(options.out, json.dumps({"policy": options.policy, "members": report}, indent=1) + "\n")
    if options.figure:
        draw(report, options.figure)
    table("experts and roles", ["net", "mixture", "information", "chance", "load by role, %"], rows)


if __name__ == "__main__":
    main()
