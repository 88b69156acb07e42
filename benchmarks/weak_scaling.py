"""Weak scaling over torchrun: as many start states a process, one process and two.

    python benchmarks/weak_scaling.py -o benchmarks/results/weak-scaling.json

Seconds of an update of pairs and of GRPO by example, one thread a process, medians of alternating turns: alone; two processes
that know nothing of one another, which meet only in the machine's memory; and two ranks, which also meet in every gradient.
Efficiency: the seconds alone, as a share of either. The machine should have two idle cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from synthnet.console import table
from synthnet.files import write_atomic
from synthnet.runs import records

TASKS = {"digits-mlp": "digits-mlp", "mnist5k-cnn": "mnist5k-cnn-family"}  # task -> the policy that GRPO goes on from
RUNS = 64  # of the zoo that pairs are taken from
ALONE, BESIDE, RANKS = "alone", "two processes", "two ranks"


def settings(stage: str, task: str, zoo: Path, processes: int) -> list[str]:
    """What an update is made of, its start states in proportion to the processes."""
    if stage == "pairs":
        return [f"zoo_dir={zoo}", f"pairs.batch={32 * processes}", "pairs.val_seeds=2"]
    by_example = ["grpo.rollout=example", "grpo.sigma=0.05", "reward.batch=512", "grpo.signal_every=0", "grpo.val_seeds=2"]
    return [f"policy_from={TASKS[task]}", f"grpo.prompts={8 * processes}", *by_example]


def begin(words: list[str], ranks: int, said: Path) -> subprocess.Popen:
    told = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launch, "-m", "synthnet.cli", *words]
    return subprocess.Popen(command, env=told, stdout=said.open("w"), stderr=subprocess.STDOUT)


def run(commands: list[list[str]], ranks: int, folder: Path) -> None:
    """Commands side by side, to their end. Raises: SystemExit with what the first one that failed said."""
    jobs = [begin(words, ranks, folder / f"{number}.txt") for number, words in enumerate(commands)]
    codes = [job.wait() for job in jobs]
    for number, code in enumerate(codes):
        if code:
            raise SystemExit((folder / f"{number}.txt").read_text())


def seconds_of(how: str, stage: str, task: str, zoo: Path, updates: int) -> float:
    """Seconds of an update, the mean of all but the first two; of two processes that of the slower one."""
    ranks, copies = (2, 1) if how == RANKS else (1, 2 if how == BESIDE else 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loop = [f"{stage}.loop.{name}={value}" for name, value in {"updates": updates, "validate_every": 1000}.items()]
        words = [stage, f"task={task}", "threads=1", "lab.tensorboard=false", *loop, *settings(stage, task, zoo, ranks)]
        run([[*words, f"run_dir={folder / str(copy)}"] for copy in range(copies)], ranks, folder)
        logs = [records(folder / str(copy) / "metrics.jsonl") for copy in range(copies)]
        times = [[row["elapsed_s"] for row in log if "loss" in row] for log in logs]
    return max((each[-1] - each[1]) / (len(each) - 2) for each in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    found, shown = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for task in TASKS:
            zoo = Path(folder) / task
            run([["zoo", f"task={task}", f"zoo.runs={RUNS}", "zoo.heldout=8", f"run_dir={zoo}"]], 1, Path(folder))
            for stage in ("pairs", "grpo"):
                turns = [
                    {how: seconds_of(how, stage, task, zoo, options.updates) for how in (ALONE, BESIDE, RANKS)}
                    for _ in range(options.turns)
                ]
                row = {how: statistics.median(turn[how] for turn in turns) for how in (ALONE, BESIDE, RANKS)}
                ratios = {how: statistics.median(turn[ALONE] / turn[how] for turn in turns) for how in (BESIDE, RANKS)}
                found[f"{task} {stage}"] = {"seconds": row, "efficiency": ratios}
                shown.append(
                    [task, stage, *(f"{1e3 * row[how]:.0f} ms" for how in row), *(f"{ratios[how]:.2f}" for how in ratios)]
                )
    write_atomic(options.out, json.dumps(found, indent=1) + "\n")
    head = ["task", "stage", ALONE, BESIDE, RANKS, f"efficiency, {BESIDE}", f"efficiency, {RANKS}"]
    table("an update, as many start states a process", head, shown)


if __name__ == "__main__":
    main()
