"""Put a trained policy into the package: float16, with a model card written from its own record and its report.

python benchmarks/ship_policy.py NAME --policy POLICY                                 # the file
python benchmarks/controls.py NAME --zoo ZOO -o benchmarks/results/FILE.json           # measured on that file
python benchmarks/ship_policy.py NAME --report benchmarks/results/FILE.json           # its card
"""

import argparse
import json
from pathlib import Path

import torch

from synthnet.files import write_atomic
from synthnet.policy import load_policy, sha256_of
from synthnet.synthesis import POLICY_DIR


def card(name: str, path: Path, report: dict, report_path: str) -> str:
    """The model card as Markdown."""
    policy = load_policy(path)
    record = policy.record
    lines = [
        f"# Policy {name}",
        "",
        f"Turns random weights of {', '.join(map(str, policy.archs))} (task {record['task']}) into working ones, without data.",
        f"{policy.n_parameters:,} parameters, float16, {path.stat().st_size / 1e6:.1f} MB, sha256 `{sha256_of(path)[:16]}…`; "
        f"best K on val: {record['best_k']}; serves K = 1..{policy.config.k_max}.",
        "",
        "## How it was made",
        "",
        "| stage | command | accuracy on val before → after, K = 1 | K = 2 |",
        "|---|---|---|---|",
    ]
    for stage in record["stages"]:
        after, before = stage.get("after") or stage.get("val"), stage.get("before")
        cells = []
        for k in (1, 2):
            key = f"accuracy_k{k}"
            was = f"{100 * before[key]:.2f} → " if before and key in before else ""
            cells.append(f"{was}{100 * after[key]:.2f} %" if key in after else "–")
        lines.append(f"| {stage['stage']} | `{' '.join(stage['command'])}` | {cells[0]} | {cells[1]} |")
    twins = report["sgd_twins"]
    lines += [
        "",
        "The pairs stage reads the zoo's weight states and, for its error measure, training images; distil reads training",
        "images and the zoo ensemble's predictions on them; GRPO reads rewards measured on train + reward images. Synthesis",
        "reads nothing.",
        "",
        f"## Measured on this file: {report['seeds']} unseen seeds, {report['n_images']} test images",
        "",
        f"Reproduce: `synthnet evaluate --policy {name} --seeds {report['seeds']}`; with controls: `{report_path}`.",
        "",
        "| weights | accuracy, mean ± sd | worst | share of SGD | aligned distance / SGD's |",
        "|---|---|---|---|---|",
        f"| start weights | {_accuracy(report['start'])} | | |",
    ]
    for k, row in report["steps"].items():
        ratio = row["identity"]["aligned_distance"]["ratio"]
        lines.append(f"| K = {k} | {_accuracy(row['accuracy'])} | {100 * row['share_of_sgd']:.2f} % | {ratio:.2f} |")
    lines += [
        f"| SGD twins | {_accuracy(twins)} | 100 % | 1 |",
        "",
        "## Limits",
        "",
        "Trained on one architecture; other hidden widths with the same inputs and outputs run with a warning, unclaimed.",
        "Start weights must be torch's default initialisation (uniform in ±1/√fan_in).",
        "There is no BatchNorm, so there are no running statistics.",
        "",
    ]
    return "\n".join(lines)


def _accuracy(stats: dict) -> str:
    return f"{100 * stats['mean']:.2f} ± {100 * stats['sd']:.2f} % | {100 * stats['min']:.2f} %"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--policy", help="write the float16 file from this policy")
    parser.add_argument("--report", help="write the card of the file that is there from this report on it")
    options = parser.parse_args()
    path = POLICY_DIR / f"{options.name}.safetensors"
    if options.report is None:
        load_policy(options.policy).save(path, torch.float16)
    else:
        report = json.loads(Path(options.report).read_text())
        write_atomic(path.with_suffix(".md"), card(options.name, path, report, options.report))


if __name__ == "__main__":
    main()
