"""Small tables of GRPO by example: runs that differ in one setting each, from committed pairs policies, judged on val alone.

    python benchmarks/example_tables.py TABLE --runs runs/example-tables -o benchmarks/results/example-TABLE.json

Rows of a table have as many updates, or, with --seconds, as many seconds of one core: a dozen updates say how many those are. A
row whose run is done is read again: choose other --runs for other lengths. Accuracy by K of 64 unseen seeds on val at the best
validation, and the lowest aligned distance to twins there.
"""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

from synthnet.console import percent, table
from synthnet.files import write_atomic
from synthnet.grpo.objective import GROUPINGS
from synthnet.lab.fork import run_command
from synthnet.policy.file import read_policy
from synthnet.runs.journal import records

LOOP = ["threads=1", "lab.tensorboard=false"]
BASE = [
    *LOOP,
    "grpo.rollout=example",
    "grpo.noisy_layers=all",
    "grpo.sigma_by=role",
    "grpo.apart=2",
    "grpo.signal_every=0",
    "reward.batch=768",
]
FROM = {
    "digits-mlp": "benchmarks/policies/pairs-digits-256.safetensors",
    "mnist5k-mlp": "benchmarks/policies/pairs-mnist5k-mlp.safetensors",
    "mnist5k-cnn": "benchmarks/policies/pairs-mnist5k-cnn.safetensors",
    "digits-resnet": "benchmarks/policies/distil-digits-resnet.safetensors",  # of which there are no pairs policies
    "digits-vit": "digits-vit",
}
OWN = {
    "digits-mlp": ["grpo.sigma=0.1", "reward.input_noise=0.5", "reward.warp=0.05", "grpo.optim.learning_rate=4e-4"],
    "mnist5k-mlp": ["grpo.sigma=0.07", "reward.input_noise=0.6", "reward.warp=0.02", "grpo.optim.learning_rate=5e-4"],
    "mnist5k-cnn": [
        "grpo.sigma=0.07",
        "reward.input_noise=0.3",
        "reward.warp=0.02",
        "grpo.optim.learning_rate=3e-4",
        "task.held_back=1000",
    ],
    "digits-resnet": ["grpo.sigma=0.05", "reward.input_noise=0.3", "reward.warp=0.03", "grpo.optim.learning_rate=1e-4"],
    "digits-vit": ["grpo.sigma=0.05", "reward.input_noise=0.3", "reward.warp=0.03", "grpo.optim.learning_rate=1e-4"],
}
RATES = {"digits-mlp": 1e-3, "mnist5k-mlp": 3e-3, "mnist5k-cnn": 4e-4, "digits-resnet": 3e-4, "digits-vit": 3e-4}  # of Muon
Change = Callable[[str], list[str]]  # settings that depend on the task
PASSES = ["grpo.target_kl=1.0"]
DRAWN = ["grpo.passed_on=drawn", "grpo.prompts=4", "grpo.num_generations=4"]  # as many evaluations as 16 means
NET = ["grpo.rollout=net", "grpo.noisy_steps=last"]


def muon(rate: float) -> list[str]:
    return ["grpo.optim.rule=muon", f"grpo.optim.learning_rate={rate:g}"]


def by_muon(share: float = 1.0) -> Change:
    """Muon at a share of the rate that suits a task by example."""
    return lambda task: muon(share * RATES[task])


def grouped(n_steps: int) -> dict[str, list[str]]:
    rows = {f"K = {n_steps}, means": [f"grpo.steps=[{n_steps}]"]}
    more = {f"K = {n_steps}, drawn, {each}": [*DRAWN, f"grpo.steps=[{n_steps}]", f"grpo.grouping={each}"] for each in GROUPINGS}
    return rows | more


def reward(**weights: float) -> list[str]:
    return [f"reward.{name}={value}" for name, value in ({"accuracy": 0, "bounded_loss": 0} | weights).items()]


TABLES: dict[str, dict[str, list[str | Change]]] = {
    "passes": {
        "1": [],
        "2": [*PASSES, "grpo.num_iterations=2"],
        "4": [*PASSES, "grpo.num_iterations=4"],
        "4, clipped at 0.05": [*PASSES, "grpo.num_iterations=4", "grpo.epsilon=0.05", "grpo.epsilon_high=0.05"],
        "4, clipped at 1": [*PASSES, "grpo.num_iterations=4", "grpo.epsilon=1", "grpo.epsilon_high=1"],
        "1, KL 0.01": ["grpo.beta=0.01"],
        "1, KL 0.1": ["grpo.beta=0.1"],
    },
    "groupings": {**grouped(2), **grouped(4)},
    "rewards": {
        "half right or wrong, half bounded loss": [],
        "right or wrong": reward(accuracy=1),
        "bounded loss": reward(bounded_loss=1),
        "probability of the truth": reward(probability=1),
        "Brier score": reward(brier=1),
        "right or wrong, and by worst classes": reward(accuracy=0.5, worst_class=0.5),
    },
    "optimisers": {
        "AdamW": [],
        **{f"Muon, {rate:g}": muon(rate) for rate in (3e-4, 1e-3, 3e-3)},
    },
    "layers": {name: [*muon(RATES["mnist5k-cnn"]), f"grpo.noisy_layers={name}"] for name in ("all", "last", "one")},
    "seconds": {
        "by example, chosen": [by_muon()],
        "by example, tied": [by_muon(), "grpo.uses=tied"],
        "by example, node": [by_muon(), "grpo.uses=node"],
        "by example, flipout": [by_muon(), "grpo.uses=flipout"],
        "by example, a layer at a time": [by_muon(), "grpo.noisy_layers=one"],
        "whole nets": [by_muon(0.3), *NET, "grpo.num_generations=4"],
        "whole nets, 64 each": [by_muon(0.3), *NET, "grpo.num_generations=64"],
        "backpropagation (distil)": [by_muon()],
    },
}  # fmt: skip


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9-]+", "", name.lower().replace(" ", "-"))


def settings_of(task: str, row: str, changes: list[str | Change]) -> tuple[str, list[str]]:
    """The command of a row and its settings."""
    changes = [one for each in changes for one in (each(task) if callable(each) else [each])]
    start = [f"task={task}", f"policy_from={FROM[task]}"]
    if row.startswith("backpropagation"):
        noise = [each.replace("reward.", "distil.") for each in OWN[task] if each.startswith("reward.")]
        own = [each.replace("grpo.", "distil.") for each in changes]
        more = ["distil.labels=hard", "distil.apart=2", "distil.nets=16", "distil.images=768"]
        more += [each for each in OWN[task] if each.startswith("task.")]
        return "distil", [*LOOP, *start, *noise, *own, *more]
    return "grpo", [*BASE, *start, *OWN[task], *changes]


def loop(kind: str, updates: int, often: int) -> list[str]:
    return [f"{kind}.loop.updates={updates}", f"{kind}.loop.validate_every={often}"]


def trained(task: str, row: str, changes: list[str | Change], folder: Path, updates: int, seconds: float | None) -> dict:
    """Train a row unless its run is done; what val said at its best."""
    kind, settings = settings_of(task, row, changes)
    path = folder / slug(row)
    if seconds is not None:
        pace = folder / f"{slug(row)}-pace"
        if not (pace / "policy.safetensors").exists():
            run_command(kind, [*settings, *loop(kind, 12, 12), f"{kind}.val_seeds=2", f"run_dir={pace}"])
        times = [each["elapsed_s"] for each in records(pace / "metrics.jsonl") if "loss" in each]
        updates = max(20, round(seconds / ((times[-1] - times[3]) / (len(times) - 4))))
    if not (path / "policy.safetensors").exists():
        run_command(kind, [*settings, *loop(kind, updates, max(10, updates // 6)), f"run_dir={path}"])
    rows = records(path / "metrics.jsonl")
    updates = rows[-1]["update"]
    val = [each for each in rows if "val/score" in each]
    best = max(val, key=lambda each: each["val/score"])
    keep = {name.removeprefix("val/"): value for name, value in best.items() if "accuracy_k" in name or "aligned" in name}
    spent = [each["elapsed_s"] for each in rows if "loss" in each]
    norms = [each["grad_norm"] for each in rows if "grad_norm" in each]
    made = {"settings": settings, "updates": updates, "seconds": spent[-1], "largest_gradient": max(norms), "best": keep}
    last = {name.removeprefix("val/"): value for name, value in val[-1].items() if "accuracy_k" in name}
    stage = read_policy(path / "policy.safetensors").record["stages"][-1]
    return {**made, "before": stage["before"], "last": last}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=list(TABLES))
    parser.add_argument("--tasks", nargs="+", default=["digits-mlp"], choices=list(FROM))
    parser.add_argument("--rows", nargs="+")
    parser.add_argument("--updates", type=int, default=250)
    parser.add_argument("--seconds", type=float, help="of training for each row, instead of updates")
    parser.add_argument("--runs", type=Path, default=Path("runs/example-tables"))
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    found: dict = json.loads(Path(options.out).read_text()) if Path(options.out).exists() else {}
    shown = []
    for task in options.tasks:
        for row, changes in TABLES[options.name].items():
            if options.rows and row not in options.rows:
                continue
            folder = options.runs / options.name / task
            made = trained(task, row, changes, folder, options.updates, options.seconds)
            found.setdefault(task, {})[row] = made
            write_atomic(options.out, json.dumps(found, indent=1) + "\n")
            by_k = {k: made["best"][k] for k in made["best"] if k.startswith("accuracy_k") and "/" not in k}
            before, after = (" / ".join(percent(each[k]) for k in by_k) for each in (made["before"], by_k))
            distance = min(value for name, value in made["best"].items() if "aligned" in name)
            shown.append([task, row, before, after, f"{distance:.2f}", str(made["updates"]), f"{made['seconds']:.0f} s"])
    table(options.name, ["task", "row", "before", "after (K)", "aligned distance", "updates", "time"], shown)


if __name__ == "__main__":
    main()
