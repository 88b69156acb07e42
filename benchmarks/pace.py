"""Updates per second of each stage, beside those of an older source tree, in one run.

    git worktree add runs/before COMMIT
    python benchmarks/pace.py --before runs/before -o benchmarks/results/pace.json

One thread. Both trees run the same commands in turns, a few updates each, so that what else the machine does meets both alike;
the median over turns of the mean over updates. Pairs by AdamW, distil and GRPO by example by Muon, as recipes have them.
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

ROOT = Path(__file__).parent.parent
TASKS = {"digits-mlp": 64, "mnist5k-cnn": 32, "digits-vit": 16}  # runs of the zoo that pairs are taken from
SHIPPED = {"digits-mlp": "digits-mlp", "mnist5k-cnn": "mnist5k-cnn-family", "digits-vit": "digits-vit"}
MUON = ["optim.rule=muon", "optim.learning_rate=1e-4", "loop.validate_every=1000", "val_seeds=2"]
STAGES = {
    "pairs": [],
    "distil": ["distil.labels=hard", "distil.nets=16", "distil.images=512"],
    "grpo": ["grpo.rollout=example", "grpo.prompts=16", "grpo.sigma=0.05", "reward.batch=512", "grpo.signal_every=0"],
}


def run(tree: Path, *words: str) -> None:
    """A command of the tree's own package, in silence."""
    told = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "synthnet.cli", *words], env=told, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{tree}: synthnet {' '.join(words)}\n{done.stderr}")


def seconds_of(tree: Path, stage: str, task: str, zoo: Path, updates: int, layers: str | None) -> float:
    """Seconds of an update, the mean of all but the first two."""
    begun = [f"policy_from={SHIPPED[task]}", *(f"{stage}.{each}" for each in MUON)]
    own = STAGES[stage] + ([f"zoo_dir={zoo}"] if stage == "pairs" else begun)
    own += [f"grpo.noisy_layers={layers}"] if layers else []
    with tempfile.TemporaryDirectory() as folder:
        told = [
            f"task={task}",
            "threads=1",
            "lab.tensorboard=false",
            f"{stage}.loop.updates={updates}",
            f"run_dir={folder}/run",
        ]
        run(tree, stage, *told, *own)
        times = [row["elapsed_s"] for row in records(Path(folder) / "run" / "metrics.jsonl") if "loss" in row]
    return (times[-1] - times[1]) / (len(times) - 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="an older source tree")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    if not (options.before / "src" / "synthnet").is_dir():
        parser.error(f"{options.before} holds no src/synthnet")
    found: dict = json.loads(Path(options.out).read_text()) if Path(options.out).exists() else {}
    found["before"] = subprocess.run(
        ["git", "-C", options.before, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    rows = []
    for task in options.tasks:
        with tempfile.TemporaryDirectory() as folder:
            zoo = Path(folder) / "zoo"
            run(ROOT, "zoo", f"task={task}", f"zoo.runs={TASKS[task]}", "threads=1", f"run_dir={zoo}")
            for name in (*STAGES, "grpo, one layer"):
                stage, _, one = name.partition(", ")
                spent: dict[str, list[float]] = {"before": [], "now": []}
                for _ in range(options.turns):
                    for when, tree in (("before", options.before.resolve()), ("now", ROOT)):
                        spent[when].append(seconds_of(tree, stage, task, zoo, options.updates, "one" if one else None))
                row = {when: 1 / statistics.median(each) for when, each in spent.items()}
                found.setdefault(task, {})[name] = {**row, "ratio": row["now"] / row["before"]}
                write_atomic(options.out, json.dumps(found, indent=1) + "\n")
                rows.append([task, name, f"{row['before']:.2f}", f"{row['now']:.2f}", f"{row['now'] / row['before']:.2f}"])
                table("updates a second, one thread", ["task", "stage", "before", "now", "ratio"], rows[-1:])


if __name__ == "__main__":
    main()
