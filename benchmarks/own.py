"""What `synthnet learn` reached on problems of the user's own: reports of run directories -> benchmarks/results/own.json.

for problem in wine cancer diabetes tanh batchnorm gelu nobias gru cnn_batchnorm lenet mnist1d_conv mnist1d_mlp; do
    synthnet learn benchmarks/problems.py:$problem --minutes 15 run_dir=runs/learn-$problem
done
python benchmarks/own.py runs/learn-*        # adds to what the file has, by problem and split
"""

import argparse
import json
from pathlib import Path

from synthnet.console import table
from synthnet.files import write_atomic

OUT = Path(__file__).parent / "results" / "own.json"
KEPT = (
    "task",
    "metric",
    "split_seed",
    "seeds",
    "n_images",
    "start",
    "sgd_twins",
    "strong_twins",
    "steps",
    "seconds",
    "cost",
    "best_k",
    "decisions",
)


def row(report: dict) -> list[str]:
    best = str(report["best_k"])  # chosen on val
    shown = lambda stats: f"{100 * stats['mean']:.2f} ± {100 * stats['sd']:.2f}"  # noqa: E731
    share = lambda name: f"{100 * report['steps'][best][f'share_of_{name}']:.2f} %"  # noqa: E731
    made = f"{shown(report['steps'][best]['accuracy'])} (K = {best})"
    twins = [shown(report["sgd_twins"]), shown(report["strong_twins"])]
    return [
        f"{report['task']} {report['split_seed']}",
        *twins,
        made,
        share("sgd"),
        share("strong"),
        f"{report['seconds']:.0f} s",
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    reports = [json.loads((run / "report.json").read_text()) for run in parser.parse_args().runs]
    kept = {f"{report['task']} {report['split_seed']}": {name: report[name] for name in KEPT} for report in reports}
    before = json.loads(OUT.read_text()) if OUT.exists() else {}
    write_atomic(OUT, json.dumps({**before, **kept}, indent=1) + "\n")
    columns = ["problem, split", "twins", "strong twins", "SynthNet", "share of twins", "of strong", "learned in"]
    table("learn", columns, [row(report) for report in reports])


if __name__ == "__main__":
    main()
