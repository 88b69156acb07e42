"""Renders docs/results.md and the table of the README from benchmarks/results/*.json.

    python benchmarks/results.py            # writes both
    python benchmarks/results.py --check    # exit code 1 where they are out of date

Nothing is computed here but differences of shares already recorded: every figure stands in a JSON that a benchmark wrote.
"""

import argparse
import json
import shlex
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MEASURES = {"nearest_raw", "nearest_aligned", "barrier"}  # distances and nats; what else is summed up is a share
APART = "aligned distance"
OVER = "minus twins, points; 95 % over seeds, images"
SCALARS = 60  # a file with more plain numbers is one to plot, not to read
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"

# The rows of the README: what it is, the file, where in it the report lies, and the best K on val, shown beside K = 1.
README_ROWS = (
    ("`digits-mlp`, 2,410 weights", "digits-mlp-controls", (), 6),
    ("`mnist5k-mlp`, 7,960", "mnist5k-mlp-controls", (), 4),
    ("`mnist5k-mlp-by-rewards`: pairs, then **rewards alone**", "grpo-muon-mnist5k-mlp-seeds", ("mnist5k-mlp-by-rewards",), 1),
    ("`mnist5k-cnn-family`, (8, 16), 2,698", "mnist5k-cnn-8-16", (), 5),
    ("… an **unseen width**, (16, 32), 7,690", "mnist5k-cnn-family", ("rows", "cnn-1-16-32-14"), 5),
    ("`digits-mlp-family`, an **unseen depth**, (32, 32, 32)", "digits-mlp-family", ("rows", "mlp-64-32-32-32-10"), 3),
    (
        "`mnist-targetcnn-family`, **15 times larger** than any it saw",
        "mnist-targetcnn-family",
        ("rows", "cnn-1-32-64-128-28"),
        3,
    ),
    ("`digits-resnet`, two blocks of 16, 10,250", "digits-resnet", ("rows", "resnet-2-4-2-8-16"), 2),
    ("… an **unseen width**, 24, by `digits-resnet-family`", "digits-resnet-family", ("rows", "resnet-2-4-2-8-24"), 1),
    ("`digits-vit`, 18,154", "digits-vit", ("rows", "vit-2-32-2-2-8"), 4),
)


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def summary(entry: dict, share: bool = True) -> str:
    if not share:
        return f"{entry['mean']:.4g} ± {entry['sd']:.3g}"
    return f"{percent(entry['mean'])} ± {percent(entry['sd'])} %"


def interval(values: list) -> str:
    return f"[{100 * values[0]:+.2f}, {100 * values[1]:+.2f}]"


def is_report(entry) -> bool:
    """One set of target networks beside its start weights and its twins, by number of synth steps."""
    return isinstance(entry, dict) and {"start", "sgd_twins", "steps"} <= set(entry) and isinstance(entry["steps"], dict)


def is_summary(entry) -> bool:
    return isinstance(entry, dict) and {"mean", "sd", "min", "max"} <= set(entry)


def find(entry, test, path=()) -> list[tuple[tuple, dict]]:
    """Every entry below that passes the test, with its path; nothing inside one that passed, nor inside `stages`."""
    if test(entry):
        return [(path, entry)]
    if not isinstance(entry, dict):
        return []
    return [hit for key, inner in entry.items() if key != "stages" for hit in find(inner, test, (*path, str(key)))]


def report_rows(path: tuple, report: dict) -> list[str]:
    name = ", ".join(part for part in path if part != "rows") or report["task"]
    twins = f"{summary(report['sgd_twins'])}"
    rows = []
    for k, step in report["steps"].items():
        identity = step.get("identity", {})
        ratios = [
            f"{identity[key]['ratio']:.2f}" if identity.get(key, {}).get("ratio") is not None else ""
            for key in ("aligned_distance", "disagreement", "ensemble_gain")
        ]
        over = interval(step["minus_sgd_interval_over_seeds"]), interval(step["minus_sgd_interval_over_images"])
        cells = [
            name,
            report["seeds"],
            summary(report["start"]),
            twins,
            k,
            summary(step["accuracy"]),
            percent(step["accuracy"]["min"]),
        ]
        cells += [f"{100 * step['minus_sgd']:+.2f}", *over, *ratios]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
        name = twins = ""
    return rows


REPORT_HEAD = (
    "| | seeds | start weights | SGD twins | K | SynthNet | worst net, % | minus twins, points "
    "| over seeds | over images | aligned distance | disagreement | ensemble gain |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
)


def scalars(entry: dict, path=()) -> list[tuple[str, str]]:
    """Plain numbers and short texts, by dotted path; what reports and summaries hold is left to their own tables."""
    rows = []
    for key, value in entry.items():
        where = (*path, str(key))
        if key == "stages" or is_report(value) or is_summary(value):
            continue
        if isinstance(value, dict):
            rows += scalars(value, where)
        elif isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) < 100):
            rows.append((" / ".join(where), f"{value:.4g}" if isinstance(value, float) else str(value)))
    return rows


def commands(entry) -> list[str]:
    """The training commands that a result records, wherever its `stages` lie."""
    if isinstance(entry, list):
        return []
    found = [stage["command"] for stage in entry.get("stages", []) if isinstance(stage, dict) and "command" in stage]
    lines = [shlex.join(command) if isinstance(command, list) else str(command) for command in found]
    return lines + [line for inner in entry.values() if isinstance(inner, dict) for line in commands(inner)]


def section(path: Path) -> str:
    result = json.loads(path.read_text(encoding="utf-8"))
    lines = [f"## {path.stem}", "", f"[`{path.name}`](../benchmarks/results/{path.name})", ""]
    reports = find(result, is_report)
    if reports:
        lines += [*REPORT_HEAD, *(row for where, report in reports for row in report_rows(where, report)), ""]
    summaries = find(result, lambda entry: is_summary(entry) or is_report(entry))
    summaries = [(where, entry) for where, entry in summaries if not is_report(entry)]
    if summaries:
        lines += ["| | mean ± sd | least, most |", "|---|---|---|"]
        for where, entry in summaries:
            share = where[-1] not in MEASURES and not path.stem.startswith("control")  # whose figures are returns
            show = percent if share else "{:.4g}".format
            lines.append(f"| {' / '.join(where)} | {summary(entry, share)} | {show(entry['min'])}, {show(entry['max'])} |")
        lines.append("")
    numbers = scalars(result)
    if len(numbers) > SCALARS:
        lines += [f"{len(numbers)} figures: see the file.", ""]
    elif numbers and not reports:
        lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in numbers), ""]
    made = list(dict.fromkeys(commands(result)))
    if made:
        lines += ["Trained by:", "```", *made, "```", ""]
    return "\n".join(lines)


def results_page() -> str:
    head = """# Results

Made by `python benchmarks/results.py` from the files of `benchmarks/results/`; a test compares. Test split, mean ± sd over
unseen seeds. *SGD twins* are the same start weights trained conventionally by the task's fixed recipe; distances, disagreement
and ensemble gain are ratios to those of SGD nets ([metrics.md](metrics.md)). What the figures mean, and which did not come out
as hoped: [experiments/](experiments/first-round.md) and [LOG.md](../LOG.md).

"""
    return head + "\n".join(section(path) for path in sorted(RESULTS.glob("*.json")))


def readme_table() -> str:
    head = "policy and target network", "seeds", "SGD twins", "strong twins", "SynthNet, K = 1", "best K on val", OVER, APART
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, file, path, k in README_ROWS:
        report = json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8"))
        for part in path:
            report = report[part]
        one, best = report["steps"]["1"], report["steps"][str(k)]
        over = f"{interval(best['minus_sgd_interval_over_seeds'])}, {interval(best['minus_sgd_interval_over_images'])}"
        distance = f"{best['identity']['aligned_distance']['ratio']:.2f}"
        strong = summary(report["strong_twins"]) if "strong_twins" in report else "not grown"
        cells = [name, report["seeds"], summary(report["sgd_twins"]), strong, summary(one["accuracy"])]
        cells += [f"{summary(best['accuracy'])} (K = {k})", f"{100 * best['minus_sgd']:+.2f}; {over}", distance]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def rendered() -> dict[Path, str]:
    """File → the text that it should have."""
    readme = ROOT / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    return {ROOT / "docs" / "results.md": results_page(), readme: f"{before}{BEGIN}\n{readme_table()}\n{END}{after}"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    stale = {path: text for path, text in rendered().items() if not path.exists() or path.read_text(encoding="utf-8") != text}
    for path, text in stale.items():
        if not check:
            path.write_text(text, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {'out of date' if check else 'written'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
