"""How many updates a net or data set that a policy has never seen takes from it, and how many from nothing.

    python benchmarks/adapting.py POLICY wine cancer tanh gelu -o benchmarks/results/adapting.json

Problems of `benchmarks/problems.py`, on val: the first validation (every ten updates) from which on 32 unseen seeds reach 99 %
of their twins' accuracy, mean over K = 1 and 2. Both begin with a tenth of their updates on whitened logits, hard labels, the
same trunk, noise and forces; the one from nothing at 2e-3, which `learn` begins with, the other at 5e-3: the weights of a
policy that has been trained are larger, and Muon's steps are of one size.
"""

import argparse
import json
from pathlib import Path

from synthnet.bundled import load_policy
from synthnet.engine import score
from synthnet.files import write_atomic
from synthnet.lab.fork import run_command
from synthnet.runs import records
from synthnet.tasks import build_task, grow_twins

SHARE, SEEDS = 0.99, 32
SHARED = ["threads=1", "lab.tensorboard=false", "distil.labels=hard", "distil.optim.rule=muon", "distil.apart=1",
          "distil.nets=8",
          "distil.images=192", "distil.input_noise=0.3", f"distil.val_seeds={SEEDS}", "distil.loop.validate_every=10",
          "distil.optim.ema=0.9"]  # fmt: skip


def curve(name: str, settings: list[str], updates: int, folder: Path) -> list[tuple[int, float]]:
    """Accuracy on val, mean over K, after so many updates."""
    loop = [f"distil.loop.updates={updates}", f"distil.standardised={updates // 10}", f"run_dir={folder}"]
    run_command("distil", [f"task={name}", *SHARED, *settings, *loop])
    rows = [row for row in records(folder / "metrics.jsonl") if "val/accuracy_k1" in row]
    return [(row["update"], (row["val/accuracy_k1"] + row["val/accuracy_k2"]) / 2) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy")
    parser.add_argument("problems", nargs="+")
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--runs", type=Path, default=Path("runs/adapting"))
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    trunk = load_policy(options.policy).config.backbone
    same = [f"backbone.{name}={trunk[name]}" for name in ("dim", "depth", "experts") if name in trunk]
    found = {}
    for problem in options.problems:
        name = f"benchmarks/problems.py:{problem}"
        task = build_task(name)
        twins = grow_twins(task, task.draw_start("val", list(range(SEEDS))))
        wanted = SHARE * score(task.network, twins, *task.examples("val"))[0].mean().item()
        ways = {
            "from the policy": [f"policy_from={options.policy}", "distil.optim.learning_rate=5e-3"],
            "from nothing": [f"backbone={trunk['name']}", *same, "distil.optim.learning_rate=2e-3"],
        }
        rows = {}
        for way, settings in ways.items():
            points = curve(name, settings, options.updates, options.runs / f"{problem}-{way.split()[-1]}")
            reached = next((update for update, value in points if value >= wanted), None)
            rows[way] = {"reached": reached, "curve": points}
        found[problem] = {"wanted": wanted, **rows}
        print(problem, f"wanted {wanted:.4f};", *(f"{way}: {row['reached']}" for way, row in rows.items()), flush=True)
    kept = json.loads(Path(options.out).read_text()) if Path(options.out).exists() else {}
    write_atomic(options.out, json.dumps({**kept, options.policy: found}) + "\n")


if __name__ == "__main__":
    main()
