"""Put a trained policy into the package: float16, with a model card written from its own record and its report.

python benchmarks/ship_policy.py NAME --policy POLICY [--archs LABEL …]               # the file
python benchmarks/controls.py NAME --zoo ZOO -o benchmarks/results/FILE.json           # measured on that file
python benchmarks/ship_policy.py NAME --report benchmarks/results/FILE.json           # its card

--archs: those of the policy's architectures that its last stages trained on, where earlier ones began with others. For a
family, the report is that of benchmarks/family.py on the file, and the card has one row for each architecture.
"""

import argparse
import json
from pathlib import Path

import torch
from results import interval

from synthnet.bundled import POLICY_DIR
from synthnet.files import sha256_of, write_atomic
from synthnet.policy.file import read_policy

READS = {
    "pairs": "The pairs stage reads the zoo's weight states and, for its error measure, training images.",
    "distil": "Distil reads training images, how far apart conventional nets lie and, for soft labels, what these predict.",
    "grpo": "GRPO reads rewards alone.",
    "critic": "The critic's stage reads training images.",
}


def card(name: str, path: Path, report: dict, report_path: str) -> str:
    """The model card as Markdown."""
    policy = read_policy(path)
    record = policy.record
    tasks = f"tasks {', '.join(policy.data_sets)}" if policy.data_sets else f"task {record['task']}"
    kinds = {"rows": _family_rows, "widths": _control_rows, "unseen": _question_rows}
    measured = next((rows for key, rows in kinds.items() if key in report), _rows)
    if policy.variants:
        tasks += f", told its spec: {policy.variants.shown}"
    lines = [
        f"# Policy {name}",
        "",
        f"Turns random weights of {', '.join(map(str, policy.archs))} ({tasks}) into working ones, without data.",
        f"{policy.config.backbone['name']}, {policy.n_parameters:,} parameters, float16, {path.stat().st_size / 1e6:.1f} MB, "
        f"sha256 `{sha256_of(path)[:16]}…`; best K on val: {record['best_k']}; serves K = 1..{policy.config.k_max}.",
        "",
        "## How it was made",
        "",
        f"| stage | command | {'return' if 'widths' in report else 'accuracy on val'} before → after, K = 1 | K = 2 |",
        "|---|---|---|---|",
        *map(_stage_row, record["stages"]),
        "",
        *(READS[stage] for stage in READS if stage in {each["stage"] for each in record["stages"]}),
        "Synthesis reads nothing.",
        *_earlier(name, record["stages"]),
        "",
        *measured(name, report, report_path),
        "",
        "## Limits",
        "",
        "Trained on the architectures above; other hidden widths with the same inputs and outputs run with a warning."
        if "rows" in report
        else "Trained on one architecture; other hidden widths with the same inputs and outputs run with a warning, unclaimed.",
        "Start weights of any standard initialisation: tensors are scaled to torch's default.",
        "There is no BatchNorm, so there are no running statistics.",
        "",
    ]
    return "\n".join(lines)


def _earlier(name: str, stages: list[dict]) -> list[str]:
    """What a reader has to know of commands that begin with a policy of this name."""
    if not any(f"policy_from={name}" in stage["command"] for stage in stages):
        return []
    return [f"`policy_from={name}` is the file of this name that shipped before, which the stages above it made."]


def _stage_row(stage: dict) -> str:
    after, before = stage.get("after") or stage.get("val") or {}, stage.get("before")
    cells = []
    for k in (1, 2):
        key = f"accuracy_k{k}"
        was = f"{100 * before[key]:.2f} → " if before and key in before else ""
        percent = f"{was}{100 * after[key]:.2f} %" if key in after else "–"
        plain = f"{before[key]:.1f} → {after[key]:.1f}" if before and key in after else "–"
        cells.append(plain if abs(after.get(key, 0)) > 1 else percent)
    stopped = f", stopped at update {stage['stopped_at_update']}" if "stopped_at_update" in stage else ""
    return f"| {stage['stage']} | `{' '.join(stage['command'])}`{stopped} | {cells[0]} | {cells[1]} |"


def _rows(name: str, report: dict, report_path: str) -> list[str]:
    again = f"synthnet evaluate --policy {name} --seeds {report['seeds']} --steps {' '.join(report['steps'])}"
    lines = [
        f"## Measured on this file: {report['seeds']} unseen seeds, {report['n_images']} test images",
        "",
        f"Reproduce: `{again}`; with controls: `{report_path}`.",
        "",
        "| weights | accuracy, mean ± sd | worst | share of SGD | aligned distance / SGD's |",
        "|---|---|---|---|---|",
        f"| start weights | {_accuracy(report['start'])} | | |",
    ]
    for k, row in report["steps"].items():
        ratio = row["identity"]["aligned_distance"]["ratio"]
        lines.append(f"| K = {k} | {_accuracy(row['accuracy'])} | {100 * row['share_of_sgd']:.2f} % | {ratio:.2f} |")
    lines.append(f"| SGD twins | {_accuracy(report['sgd_twins'])} | 100 % | 1 |")
    if strong := report.get("strong_twins"):
        lines.append(f"| strong twins, the best of {strong['search']['tried']} settings on val | {_accuracy(strong)} | | |")
        told = "; ".join(f"K = {k}: {_beside_strong(row)}" for k, row in report["steps"].items())
        lines += ["", f"Minus strong twins, points, 95 % over seeds, over images: {told}."]
    return lines


def _beside_strong(row: dict) -> str:
    spans = [interval(row[f"minus_strong_interval_over_{over}"]) for over in ("seeds", "images")]
    return ", ".join([f"{100 * row['minus_strong']:+.2f}", *spans])


def _family_rows(name: str, report: dict, report_path: str) -> list[str]:
    rows = list(report["rows"].values())
    steps, images = list(rows[0]["steps"]), " or ".join(map(str, sorted({row["n_images"] for row in rows})))
    lines = [
        f"## Measured on this file: unseen seeds, {images} test images",
        "",
        f"`{report_path}`, made by `python benchmarks/family.py {name} …`. Shares are of SGD twins from the same starts.",
        "",
        f"| net | trained on | seeds | SGD twins | {' | '.join(f'K = {k}' for k in steps)} | aligned distance / SGD's, K = 2 |",
        "|---|---|---|---|" + "---|" * (len(steps) + 1),
    ]
    beside = []
    for label, row in report["rows"].items():
        shares = " | ".join(f"{100 * row['steps'][k]['share_of_sgd']:.2f} %" for k in steps)
        ratio = row["steps"]["2"]["identity"]["aligned_distance"]["ratio"]
        twins = f"{100 * row['sgd_twins']['mean']:.2f} ± {100 * row['sgd_twins']['sd']:.2f} %"
        lines.append(f"| {label} | {'yes' if row['trained'] else 'no'} | {row['seeds']} | {twins} | {shares} | {ratio:.2f} |")
        if strong := row.get("strong_twins"):
            told = "; ".join(f"K = {k}: {_beside_strong(row['steps'][k])}" for k in steps)
            search = strong["search"]
            found = f"the best of {search['tried']} settings on val{'' if search['done'] else ', ended by the clock'}"
            beside.append(f"- {label}, {found}, {100 * strong['mean']:.2f} ± {100 * strong['sd']:.2f} %; {told}.")
    if beside:
        lines += ["", "Strong twins, and minus these in points, 95 % over seeds, over images:", *beside]
    return lines


def _control_rows(name: str, report: dict, report_path: str) -> list[str]:
    shown = lambda stats: f"{stats['mean']:.1f} ± {stats['sd']:.1f} | {stats['min']:.1f}"  # noqa: E731
    paid, search = report["training"], report.get("cheapest", "CMA-ES")
    peer = report.get("peers", {}).get(search, {"steps_median": report["cma_steps_median"], "level": report["cma_level"]})
    beyond = [f"| specs beyond the ranges by up to a fifth | {shown(report['beyond'])} |"] if "beyond" in report else []
    return [
        "## Measured on this file: 256 unseen seeds, 20 episodes each in Gymnasium",
        "",
        f"Reproduce: `synthnet evaluate --policy {name} --seeds 256`; beside a search for each net: `{report_path}`.",
        "",
        "| nets | return, mean ± sd | worst |",
        "|---|---|---|",
        f"| random | {shown(report['start'])} |",
        *(f"| K = {k} | {shown(row)} |" for k, row in report["steps"].items()),
        *(f"| hidden {width}, never trained on (64 seeds) | {shown(row)} |" for width, row in report["widths"].items()),
        *beyond,
        "",
        f"Learned from {paid['evaluations']:,.0f} rollouts, {paid['environment_steps']:,} environment steps. {search} took "
        f"{peer['steps_median']:,.0f} steps for one net (median of {len(report['searches'])}, {peer['level']} of them level): "
        f"the policy has paid for itself after {report['break_even_nets']:.0f} nets. Nets of different seeds lie "
        f"{report['aligned_distance_to_cma']:.2f} times as far apart as those of the search.",
    ]


def _question_rows(name: str, report: dict, report_path: str) -> list[str]:
    """Of a policy that is told which classes are yes."""
    shown = lambda value: f"{100 * value:.2f} %"  # noqa: E731
    lines = [
        "## Measured on this file: unseen seeds, test split, specs that it never saw, and others",
        "",
        f"`{report_path}`, made by `python benchmarks/unseen_tasks.py`. Retention: accuracy as a share of the twins', mean "
        "over specs.",
        "",
        "| specs | twins | start weights | told another, K = 2 | K = 1 | K = 2 | K = 4 | retention, best of these K (worst) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, row in ((kind, report[kind]) for kind in ("unseen", "seen", "beyond") if kind in report):
        best = max((row[f"k{k}"] for k in (1, 2, 4)), key=lambda each: each["retention"])
        means = [shown(row[key]["mean"]) for key in ("twins", "start", "told wrong", "k1", "k2", "k4")]
        lines.append(f"| {kind} | {' | '.join(means)} | {shown(best['retention'])} ({shown(best['worst_retention'])}) |")
    return lines


def relative(command: list[str]) -> list[str]:
    """A recorded command with paths as seen from where the project lies."""
    return [word.replace(f"{Path.cwd()}/", "") for word in command]


def _accuracy(stats: dict) -> str:
    return f"{100 * stats['mean']:.2f} ± {100 * stats['sd']:.2f} % | {100 * stats['min']:.2f} %"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--policy", help="write the float16 file from this policy")
    parser.add_argument("--archs", nargs="+", metavar="LABEL", help="keep these of its architectures")
    parser.add_argument("--report", help="write the card of the file that is there from this report on it")
    options = parser.parse_args()
    path = POLICY_DIR / f"{options.name}.safetensors"
    if options.report is None:
        policy = read_policy(options.policy)
        if strange := set(options.archs or ()) - {arch.label for arch in policy.archs}:
            parser.error(f"the policy has no {', '.join(sorted(strange))}; it has {', '.join(a.label for a in policy.archs)}")
        policy.archs = [arch for arch in policy.archs if not options.archs or arch.label in options.archs]
        for stage in policy.record["stages"]:
            stage["command"] = relative(stage["command"])
        policy.save(path, torch.float16)
    else:
        report = json.loads(Path(options.report).read_text())
        report = report.get(options.name, report)
        write_atomic(path.with_suffix(".md"), card(options.name, path, report, options.report))


if __name__ == "__main__":
    main()
