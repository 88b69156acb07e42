"""Kill -9 at random moments, start again, until the work is done: the result must be that of an undisturbed run, bit for bit.

python benchmarks/kills.py [--kills 25] [--stages zoo spread pairs distil grpo sweep audit] -o benchmarks/results/kills.json

Each stage is first run whole, then again in another folder, killed `kills` times (fewer where it is done before). Compared:
every tensor of every file it made, metrics.jsonl and an audit's report without times. `spread` is a zoo whose shards are
trained by worker processes; they outlive the process that is killed, and the next one's may do the same shard at once.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from synthnet.console import table
from synthnet.files import write_atomic
from synthnet.runs.journal import records

SMALL = ["task=digits-mlp", "task.hidden=[8]", "threads=1", "lab.tensorboard=false"]
TRUNK = ["backbone.dim=16", "backbone.depth=1", "backbone.heads=2"]
LOOP = ["validate_every=20", "checkpoint_every=5"]
SHORTEST_S, LONGEST_S = 1.0, 9.0  # after its start that a process is killed


def commands(root: Path) -> dict[str, list[str]]:
    """Stage -> its settings; later ones work on what the first ones make in `root`."""
    loop = lambda stage, updates: [f"{stage}.loop.{part}" for part in (f"updates={updates}", *LOOP)]  # noqa: E731
    start = f"policy_from={root / 'pairs' / 'policy.safetensors'}"
    zoo = f"zoo_dir={root / 'zoo'}"
    counts = ["--training", "240", "--heldout", "16", "--steps", "1"]
    grpo = ["grpo.prompts=2", "grpo.num_generations=8", "grpo.val_seeds=4", "reward.batch=64", "grpo.guard.drop=null", start]
    return {
        "zoo": ["zoo", *SMALL, "zoo.runs=240", "zoo.heldout=16", "zoo.shard=4"],
        "pairs": ["pairs", *SMALL, *TRUNK, zoo, "pairs.val_seeds=4", *loop("pairs", 4000)],
        "distil": [
            "distil",
            *SMALL,
            zoo,
            start,
            "distil.val_seeds=4",
            "distil.nets=4",
            "distil.apart=1",
            *loop("distil", 2500),
        ],
        "grpo": ["grpo", *SMALL, *grpo, *loop("grpo", 1500)],
        "spread": ["zoo", *SMALL, "zoo.runs=240", "zoo.heldout=16", "zoo.shard=16", "zoo.executor=processes"],
        "audit": ["audit", str(root / "pairs" / "policy.safetensors"), "--zoo", str(root / "zoo"), *counts],
        "sweep": ["sweep", *SMALL, *grpo, *loop("grpo", 40), "stages=[grpo]", "seed=range(0,8)", "sweep.workers=1"],
    }


def run(command: list[str], folder: Path, killed_after: float | None) -> int:
    """The exit code of a command; -9 where it was killed."""
    place = ["-o", str(folder)] if command[0] == "audit" else [f"run_dir={folder}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "synthnet.cli", *command, *place],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        _, said = process.communicate(timeout=killed_after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
    if process.returncode not in (0, -9):
        raise SystemExit(f"{command[0]}: exit code {process.returncode}: {said.decode()[-500:]}")
    return process.returncode


def results(folder: Path) -> dict[str, object]:
    """All that a run made, by file: tensors, and metrics without times."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors" and "training" not in path.stem:
            found[name] = load_file(path)
        if path.name == "metrics.jsonl":
            found[name] = [{k: v for k, v in row.items() if not k.endswith("_s")} for row in records(path)]
        if path.name == "report.json":
            found[name] = {k: v for k, v in json.loads(path.read_text()).items() if not k.endswith("_s")}
    return found


def same(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict) and all(isinstance(value, torch.Tensor) for value in one.values()):
        return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    return one == other


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--stages", nargs="+", default=list(commands(Path())))
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    rng, report, rows = random.Random(0), {}, []
    with tempfile.TemporaryDirectory() as root_name:
        root = Path(root_name)
        for stage, command in commands(root).items():
            began = time.monotonic()
            run(command, root / stage, None)
            whole_s = time.monotonic() - began
            if stage not in options.stages:
                continue
            kills, code = 0, -9
            while code == -9:
                patience = rng.uniform(SHORTEST_S, LONGEST_S) if kills < options.kills else None
                code = run(command, root / f"{stage}-killed", patience)
                kills += code == -9
            whole, killed = results(root / stage), results(root / f"{stage}-killed")
            equal = whole.keys() == killed.keys() and all(same(whole[name], killed[name]) for name in whole)
            report[stage] = {"kills": kills, "files": len(whole), "equal": equal, "undisturbed_s": whole_s}
            rows.append([stage, str(kills), str(len(whole)), "same bits" if equal else "DIFFERENT"])
            print(rows[-1], flush=True)
            write_atomic(options.out, json.dumps(report, indent=1) + "\n")
    table("killed with SIGKILL at random moments and started again", ["stage", "kills", "files compared", "result"], rows)


if __name__ == "__main__":
    main()
