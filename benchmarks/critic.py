"""`--steps auto` against every fixed K: the two ways of using the early-stop critic, on the test split.

python benchmarks/critic.py POLICY [--seeds 256] -o FILE.json

replanned: the policy is told as many steps left as the critic thinks best, asked again before each step. one: it is told 1
each time.
"""

import argparse
import json

import torch
from torch import Tensor

from synthnet.audit.evaluation import interval, split_data, summary, task_of_policy
from synthnet.bundled import load_policy
from synthnet.console import percent, table
from synthnet.engine.scoring import score
from synthnet.files import write_atomic
from synthnet.policy import steps as ways
from synthnet.policy.rollout import synthesize_flat
from synthnet.settings import option


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("policy")
    parser.add_argument("--seeds", type=int, default=256)
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    policy = load_policy(options.policy)
    task = task_of_policy(policy)
    net, (inputs, labels) = task.network, split_data(task, "test")
    start = task.draw_start("test", list(range(options.seeds)))

    def measured(nets: Tensor) -> Tensor:
        return score(net, nets, inputs, labels)[0]

    fixed = {k: measured(synthesize_flat(policy, start, k, net)[:, -1]) for k in range(1, policy.config.k_max + 1)}
    best = max(fixed, key=lambda k: fixed[k].mean().item())
    report = {"task": task.name, "best_fixed_k": best, "stages": policy.record["stages"], "rows": {}}
    rows = []
    for plan in ("auto", "one"):
        nets, taken = option(ways, plan, "steps").synthesize(policy, start, net)
        accuracies = measured(nets)
        report["rows"][f"auto, {plan}"] = {
            **summary(accuracies),
            "mean_steps": taken.double().mean().item(),
            "nets_by_steps": taken.bincount(minlength=policy.config.k_max + 1).tolist(),
            "minus_best_fixed": (accuracies - fixed[best]).mean().item(),
            "interval": interval(accuracies - fixed[best]),
        }
    report["rows"] |= {f"K = {k}": {**summary(values), "mean_steps": k} for k, values in fixed.items()}
    oracle = torch.stack(list(fixed.values())).amax(0)
    report["rows"]["best K of each net, chosen on the test images"] = summary(oracle)
    for name, row in report["rows"].items():
        steps = f"{row['mean_steps']:.2f}" if "mean_steps" in row else ""
        rows.append([name, steps, f"{percent(row['mean'])} ± {100 * row['sd']:.2f}", percent(row["min"])])
    write_atomic(options.out, json.dumps(report, indent=1) + "\n")
    table(f"{task.name}, {options.seeds} unseen seeds, test split", ["steps", "mean steps", "accuracy", "worst"], rows)


if __name__ == "__main__":
    main()
