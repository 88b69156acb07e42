"""What a net costs: synthesised, or trained to the same accuracy; and after how many nets the policy has paid for itself.

python benchmarks/synthesis.py POLICY [--zoo-runs N --runs RUN_DIR…] -o FILE.json

Times are medians. Synthesis runs on one thread with the policy loaded, one net and 256 nets at a time. SGD is the task's
recipe, stopped after the first epoch whose mean accuracy on val (64 seeds) is that of the synthesised nets: as a plain PyTorch
loop on one thread, and batched by the population engine on all threads. The policy's cost is its zoo (batched) and its stages'
run directories.
"""

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import torch
from engine import alternating, on_one_thread, train_loop

from synthnet.bundled import load_policy
from synthnet.console import table
from synthnet.engine.population import Training, train_population
from synthnet.engine.scoring import score
from synthnet.files import write_atomic
from synthnet.policy.rollout import synthesize_flat
from synthnet.tasks import Task, build_task

NETS = 256


def epochs_to(task: Task, target: float) -> int | None:
    """The first epoch after which SGD's mean accuracy on val is `target`; None if the recipe never gets there."""
    start, (inputs, labels) = task.draw_start("val", list(range(64))), task.examples("train")
    epochs = list(range(1, 2 * task.recipe.epochs + 1))
    states = train_population(task.network, start, inputs, labels, Training(task.recipe), epochs)
    reached = [score(task.network, states[:, i], *task.examples("val"))[0].mean().item() for i in range(len(epochs))]
    return next((epoch for epoch, value in zip(epochs, reached, strict=True) if value >= target), None)


def stage_seconds(path: str) -> float:
    """How long a stage's updates took, by its metrics."""
    rows = [json.loads(line) for line in (Path(path) / "metrics.jsonl").read_text().splitlines()]
    return max(row.get("elapsed_s", 0.0) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("policy")
    parser.add_argument("--zoo-runs", type=int, default=0)
    parser.add_argument("--runs", nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--out")
    options = parser.parse_args()
    policy = load_policy(options.policy)
    task, steps = build_task(policy.record["task"]), policy.record["best_k"]
    net, recipe = task.network, task.recipe
    start, (inputs, labels) = task.draw_start("val", list(range(NETS))), task.examples("train")
    made = synthesize_flat(policy, start[:64], steps, net)[:, -1]
    target = score(net, made, *task.examples("val"))[0].mean().item()
    epochs = epochs_to(task, target)
    trained = epochs or recipe.epochs
    order = inputs[: len(inputs) // recipe.batch_size * recipe.batch_size]
    ways = {
        "one": lambda: on_one_thread(lambda: synthesize_flat(policy, start[:1], steps, net)),
        "batch": lambda: on_one_thread(lambda: synthesize_flat(policy, start, steps, net)),
        "sgd_batched_epoch": lambda: train_population(net, start, inputs, labels, Training(replace(recipe, epochs=1)), [1]),
        "sgd_loop_epoch": lambda: on_one_thread(lambda: train_loop(task.arch, start[:2], order, labels[: len(order)])),
    }
    seconds = {name: statistics.median(times) for name, times in alternating(ways, options.rounds).items()}
    report = {
        "command": ["python", *sys.argv],
        "policy": options.policy,
        "steps": steps,
        "threads": torch.get_num_threads(),
        "accuracy_on_val": target,
        "sgd_epochs_to_it": epochs,
        "synthesis_ms": {"1 net": 1e3 * seconds["one"], "each of 256": 1e3 * seconds["batch"] / NETS},
        "sgd_ms": {
            "loop": 1e3 * seconds["sgd_loop_epoch"] / 2 * trained * len(inputs) / len(order),
            "batched": 1e3 * seconds["sgd_batched_epoch"] / NETS * trained,
        },
    }
    if options.runs:
        zoo = options.zoo_runs * seconds["sgd_batched_epoch"] / NETS * recipe.epochs
        stages = {Path(run).name: stage_seconds(run) for run in options.runs}
        report["training_s"] = {"zoo": zoo, **stages}
        total = zoo + sum(stages.values())
        gain = {way: value - report["synthesis_ms"]["each of 256"] for way, value in report["sgd_ms"].items()}
        report["break_even_nets"] = {way: round(1e3 * total / ms) if ms > 0 else None for way, ms in gain.items()}
    rows = [[key, json.dumps(value)] for key, value in report.items() if key != "command"]
    table(f"what a net costs: {options.policy}", ["", ""], rows)
    if options.out:
        write_atomic(options.out, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
