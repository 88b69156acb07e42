"""After how many nets each shipped policy has paid for itself, all of its stages counted: against a plain loop, and our engine.

    python benchmarks/break_even.py [POLICY …] -o benchmarks/results/break-even.json

One core. A policy's cost: for every stage of its record, the seconds an update takes now (the median of a dozen, by its own
command, from the policy as it ships) times the updates that the command asks for, and the runs of its zoo at the engine's pace.
A net's: synthesis at its best K in batches of 64 (4 where a net has more than 100,000 weights); by SGD the task's recipe,
stopped after the first epoch at which the mean accuracy on val is that of the synthesised nets: as a plain PyTorch loop, and in
a population of the engine. What never reaches it runs the recipe to its end. The net: that of the policy's own task.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from engine import alternating, train_loop

from synthnet.bundled import POLICY_DIR, load_policy
from synthnet.config import compose
from synthnet.console import table
from synthnet.engine import Training, score, train_population
from synthnet.errors import InputError
from synthnet.files import write_atomic
from synthnet.lab.fork import run_command
from synthnet.policy import Policy, synthesize_flat
from synthnet.progress import Bar
from synthnet.runs import records
from synthnet.tasks import Task, build_task

UPDATES, ROUNDS, VAL_SEEDS, LARGE = 12, 3, 16, 100_000
OWN = ("run_dir=", "policy_from=", "zoo_dir=")  # words of a command that are of where it once ran


def pace(name: str, words: list[str], folder: Path) -> float:
    """Seconds an update of a stage takes now. Raises: InputError where its command is not one of this version."""
    kind, run = words[1], folder / "run"
    kept = [word for word in words[2:] if not word.startswith(OWN) and "loop." not in word and "val_seeds" not in word]
    kept += ["threads=1", "lab.tensorboard=false"]
    first = [] if kind == "pairs" else [f"policy_from={name}"]
    loop = [f"{kind}.loop.updates={UPDATES}", f"{kind}.loop.validate_every={UPDATES}", f"{kind}.val_seeds=2"]
    if kind == "pairs" or (kind == "distil" and compose(words[2:]).distil.reads_zoo):
        run_command("zoo", [*kept, "zoo.runs=4", "zoo.heldout=2", f"run_dir={folder / 'zoo'}"])
        loop += [f"zoo_dir={folder / 'zoo'}"]
    run_command(kind, [*kept, *first, *loop, f"run_dir={run}"])
    times = [row["elapsed_s"] for row in records(run / "metrics.jsonl") if "loss" in row]
    return statistics.median(after - before for before, after in pairwise(times[2:]))


def updates_of(stage: dict) -> int:
    """How many a stage had: as it says, or its command."""
    words, asked = stage["command"], stage.get("updates") or stage.get("stopped_at_update")
    return asked or getattr(compose(words[2:]), words[1]).loop.updates


def epochs_to(task: Task, target: float) -> int | None:
    """The first epoch after which SGD's mean accuracy on val is `target`; None if the recipe never gets there."""
    start, epochs = task.draw_start("val", list(range(VAL_SEEDS))), list(range(1, task.recipe.epochs + 1))
    states = train_population(task.network, start, *task.examples("train"), Training(task.recipe), epochs)
    reached = [score(task.network, states[:, i], *task.examples("val"))[0].mean().item() for i in range(len(epochs))]
    return next((epoch for epoch, value in zip(epochs, reached, strict=True) if value >= target), None)


def per_net(policy: Policy, task: Task) -> dict:
    """Seconds of one core for a net, by synthesis, by a loop and in a population."""
    net, recipe, steps = task.network, task.recipe, policy.record["best_k"]
    n_nets = 4 if net.spec.n_weights > LARGE else 64
    start, (inputs, labels) = task.draw_start("val", list(range(n_nets))), task.examples("train")
    made = synthesize_flat(policy, start[:VAL_SEEDS], steps, net)[:, -1]
    target = score(net, made, *task.examples("val"))[0].mean().item()
    epochs = epochs_to(task, target)
    order = inputs[: len(inputs) // recipe.batch_size * recipe.batch_size]
    few = start[: min(n_nets, 16)]
    ways = {
        "synthesis": lambda: synthesize_flat(policy, start, steps, net),
        "loop": lambda: train_loop(task.arch, start[:1], order, labels[: len(order)]),
        "engine": lambda: train_population(net, few, inputs, labels, Training(replace(recipe, epochs=1)), [1]),
    }
    seconds = {name: statistics.median(times) for name, times in alternating(ways, ROUNDS).items()}
    trained = epochs or recipe.epochs
    return {
        "weights": net.spec.n_weights,
        "accuracy_on_val": target,
        "sgd_epochs_to_it": epochs,
        "synthesis_s": seconds["synthesis"] / n_nets,
        "loop_s": seconds["loop"] * trained * len(inputs) / len(order),
        "engine_s": seconds["engine"] / len(few) * trained,
        "engine_run_s": seconds["engine"] / len(few) * recipe.epochs,
    }


def measure(name: str) -> dict:
    policy = load_policy(name)
    task = build_task(policy.record["task"])
    if task.data is None:
        raise InputError("rewards alone: benchmarks/control.py counts environment steps")
    if task.variants is not None:
        raise InputError("nets of a task with variants: no SGD for each spec is timed here")
    net, stages = per_net(policy, task), []
    for stage in policy.record["stages"]:
        words = stage["command"]
        with tempfile.TemporaryDirectory() as folder:
            update_s = pace(name, words, Path(folder))
        n_updates = updates_of(stage)
        stages.append({"stage": words[1], "updates": n_updates, "update_s": update_s, "seconds": n_updates * update_s})
        if runs := stage.get("zoo_runs"):
            stages.append({"stage": "zoo", "runs": runs, "seconds": runs * net["engine_run_s"]})
    total = sum(stage["seconds"] for stage in stages)
    for way in ("loop", "engine"):
        saved = net[f"{way}_s"] - net["synthesis_s"]
        net[f"break_even_{way}"] = round(total / saved) if saved > 0 else None
    return {
        "parameters": policy.n_parameters,
        "best_k": policy.record["best_k"],
        "total_s": total,
        "stages": stages,
        "nets": {task.name: net},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policies", nargs="*", default=sorted(path.stem for path in POLICY_DIR.glob("*.safetensors")))
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(Path(options.out).read_text()) if Path(options.out).exists() else {}
    with Bar("policies", len(options.policies)) as bar:
        for name in options.policies:
            try:
                found[name] = measure(name)
            except InputError as error:
                found[name] = {"not_measured": str(error)}
            write_atomic(options.out, json.dumps(found, indent=1) + "\n")
            bar.advance(note=name)
    rows = []
    for name, each in found.items():
        for task, row in each.get("nets", {}).items():
            costs = [f"{row[key]:.3g}" for key in ("synthesis_s", "loop_s", "engine_s")]
            after = [f"{row[key]:,}" if row[key] else "never" for key in ("break_even_loop", "break_even_engine")]
            rows.append([name, task, f"{each['total_s'] / 60:.0f} min", *costs, *after])
        if "not_measured" in each:
            rows.append([name, each["not_measured"], *[""] * 6])
    table("break-even", ["policy", "net", "training", "synthesis, s", "loop, s", "engine, s", "loop", "engine"], rows)


if __name__ == "__main__":
    main()
