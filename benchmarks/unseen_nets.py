"""Policies on nets of sizes that the first of them was never trained on, each beside the twins of the same start weights.

    python benchmarks/unseen_nets.py one digits-mlp-family --nets 'digits-mlp hidden=[20,20]' … -o benchmarks/results/….json

A net: a task and its settings, as KEY=JSON. Unseen seeds; the metric at each K as a share of twins' by the task's fixed recipe.
"""

import argparse
import json
from pathlib import Path

from family import kept_twins, task_of

from synthnet.audit.evaluation import evaluate_policy
from synthnet.bundled import load_policy
from synthnet.console import percent, table
from synthnet.files import write_atomic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policies", nargs="+")
    parser.add_argument("--nets", nargs="+", required=True)
    parser.add_argument("--seeds", type=int, default=48)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--split", default="test", choices=["val", "test"])
    parser.add_argument("--twins", type=Path, default=Path("runs/twins"))
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    policies = {name: load_policy(name) for name in options.policies}
    tasks = {text: task_of(name, settings) for text in options.nets for name, *settings in [text.split()]}
    if seen := [text for text, task in tasks.items() if task.arch in policies[options.policies[0]].archs]:
        raise SystemExit(f"{options.policies[0]} was trained on {', '.join(seen)}")
    rows: dict[str, dict] = {}
    for text, task in tasks.items():
        twins = kept_twins(task, options.seeds, options.twins)
        rows[text] = {
            name: evaluate_policy(policy, task, options.seeds, options.steps, options.split, twins=twins)
            for name, policy in policies.items()
        }
        write_atomic(options.out, json.dumps(rows, indent=1) + "\n")
    lines = [
        [text, name, percent(report["sgd_twins"]["mean"])]
        + [percent(step["share_of_sgd"]) for step in report["steps"].values()]
        + ["/".join(f"{step['identity']['aligned_distance']['ratio']:.2f}" for step in report["steps"].values())]
        for text, found in rows.items()
        for name, report in found.items()
    ]
    head = ["net", "policy", "SGD twins", *(f"K = {k}, of SGD" for k in options.steps), "aligned distance / SGD's"]
    table(f"{options.seeds} unseen seeds, {options.split} split", head, lines)


if __name__ == "__main__":
    main()
