"""What an executor adds to a trial: a command that does next to nothing, many times, on each; one JSON file and one table.

python benchmarks/executors.py [--trials 6] [--names inline processes ray slurm] -o benchmarks/results/executors.json
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from synthnet.console import table
from synthnet.files import write_atomic
from synthnet.runs.executors import build_executor


def measure(name: str, trials: int, folder: Path) -> dict:
    """Seconds until the executor is there, and of each command, one at a time."""
    began = time.monotonic()
    executor = build_executor(name, 1, 1)
    ready, seconds = time.monotonic() - began, []
    try:
        for number in range(trials):
            began = time.monotonic()
            handle = executor.submit(["init", "-o", str(folder / f"{name}-{number}.safetensors")], folder / "log.txt")
            while (code := handle.poll()) is None:
                time.sleep(0.02)
            if code:
                raise SystemExit(f"{name}: exit code {code}: {(folder / 'log.txt').read_text()[-300:]}")
            seconds.append(time.monotonic() - began)
    finally:
        executor.close()
    return {"start_s": ready, "first_s": seconds[0], "median_s": statistics.median(seconds[1:]), "seconds_s": seconds}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--names", nargs="+", default=["inline", "processes", "ray", "slurm"])
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names:
            report[name] = measure(name, options.trials, Path(folder))
    write_atomic(options.out, json.dumps(report, indent=1) + "\n")
    rows = [[name, *(f"{row[key]:.2f} s" for key in ("start_s", "first_s", "median_s"))] for name, row in report.items()]
    table("overhead of a trial that does nothing", ["executor", "until it is there", "first trial", "each further trial"], rows)


if __name__ == "__main__":
    main()
