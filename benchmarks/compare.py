"""Several policies of one task side by side on the test split: one JSON file and one table.

python benchmarks/compare.py -o FILE.json NAME=POLICY [NAME=POLICY …] [--seeds 256] [--steps 1 2 4] [--split-seed N]
"""

import argparse
import json

from synthnet.audit.evaluation import evaluate_policy, task_of_policy
from synthnet.bundled import load_policy
from synthnet.console import percent, table
from synthnet.files import write_atomic


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("policies", nargs="+", metavar="NAME=POLICY")
    parser.add_argument("--seeds", type=int, default=256)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--split-seed", type=int, help="by default the policy's own")
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    reports, rows = {}, []
    for entry in options.policies:
        name, _, path = entry.partition("=")
        policy = load_policy(path)
        task = task_of_policy(policy, options.split_seed)
        report = evaluate_policy(policy, task, options.seeds, options.steps)
        reports[name] = {**report, "stages": policy.record["stages"], "best_k_on_val": policy.record["best_k"]}
        for k, row in report["steps"].items():
            identity, twin = row["identity"], row["own_twin"]
            rows.append(
                [
                    name if k == str(options.steps[0]) else "",
                    k,
                    f"{percent(row['accuracy']['mean'])} ± {100 * row['accuracy']['sd']:.2f}",
                    percent(row["accuracy"]["min"]),
                    percent(row["share_of_sgd"]),
                    f"{identity['aligned_distance']['ratio']:.2f}",
                    f"{identity['disagreement']['ratio']:.2f} / {identity['ensemble_gain']['ratio']:.2f}",
                    percent(twin["own_twin_first"], 0),
                ]
            )
    write_atomic(options.out, json.dumps(reports, indent=1) + "\n")
    columns = [
        "policy",
        "K",
        "accuracy",
        "worst",
        "share of SGD",
        "aligned / SGD",
        "disagreement / ensemble gain",
        "own twin first",
    ]
    twins = next(iter(reports.values()))["sgd_twins"]
    table(
        f"{options.seeds} unseen seeds, test split; SGD twins {percent(twins['mean'])} ± {100 * twins['sd']:.2f}", columns, rows
    )


if __name__ == "__main__":
    main()
