"""Policies after GRPO on the test split, beside twins and strong twins that may use the reward images too.

    python benchmarks/grpo_seeds.py runs/grpo-*/policy.safetensors -o benchmarks/results/grpo-seeds.json

All policies are of one task and one split; 256 unseen seeds, mean nets and, beside them, nets drawn with the noise they were
trained with. Twins and strong twins are trained on train + reward, which is what rewards were measured on.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from synthnet.audit import summary
from synthnet.audit.evaluation import interval, split_data, task_of_policy
from synthnet.bundled import load_policy
from synthnet.console import percent, table
from synthnet.engine import Training, predictions, train_population
from synthnet.files import write_atomic
from synthnet.nets import identity_report
from synthnet.policy import rollout, standard_noise, synthesize_flat, with_noise
from synthnet.runs import records
from synthnet.seeds import generator
from synthnet.tasks import Task, grow_twins, recipe_of, strong_recipe

BOTH = "train+reward"


def strong_twins(task: Task, start: Tensor) -> Tensor:
    """Strong twins [net weights] by the recipe that a search on val found for train alone, trained on train + reward."""
    found = strong_recipe(task)
    return train_population(
        task.network, start, *task.examples(BOTH), found.training, [found.recipe.epochs], run_ids=list(range(len(start)))
    )[:, 0]


@torch.no_grad()
def drawn(policy, start: Tensor, k: int, task: Task) -> Tensor:
    """Nets [net weights] of which the last step's action is drawn."""
    noise = standard_noise(tuple(start.shape), generator(0, "drawn"), start.device)
    act = with_noise(lambda step: noise if step == k - 1 else torch.zeros_like(noise))
    return rollout(policy, start, k, task.network, act=act)[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policies", nargs="+")
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--seeds", type=int, default=256)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    task = task_of_policy(load_policy(options.policies[0]))
    inputs, labels = split_data(task, "test")
    start = task.draw_start("test", list(range(options.seeds)))
    right = lambda nets: task.objective.each(predictions(task.network, nets, inputs), labels)  # noqa: E731
    references = {
        "twins": grow_twins(task, start),
        "twins on train + reward": train_population(
            task.network, start, *task.examples(BOTH), Training(recipe_of(task)), [recipe_of(task).epochs]
        )[:, 0],
        "strong twins on train + reward": strong_twins(task, start),
    }
    twin_probs = predictions(task.network, references["twins"], inputs)
    each = {name: right(nets) for name, nets in references.items()}
    report = {"task": task.name, "seeds": options.seeds, "n_images": len(labels), "split_seed": task.split_seed}
    report |= {name: summary(values.mean(1)) for name, values in each.items()}
    report["policies"], rows = {}, [[name, "", *_cells(values.mean(1)), "", ""] for name, values in each.items()]
    for path in options.policies:
        policy, name = load_policy(path), f"{Path(path).parent.name}/{Path(path).stem}"
        log = [row for row in records(Path(path).parent / "metrics.jsonl") if "evaluations" in row]
        found = {"evaluations": sum(row["evaluations"] for row in log), "seconds": log[-1]["elapsed_s"] if log else None}
        report["policies"][name] = {**found, "stages": policy.record["stages"], "steps": {}}
        for k in options.steps:
            nets = synthesize_flat(policy, start, k, task.network)[:, -1]
            probs = predictions(task.network, nets, inputs)
            mine = task.objective.each(probs, labels)
            row = {**summary(mine.mean(1)), "drawn": summary(right(drawn(policy, start, k, task)).mean(1))}
            for reference, values in each.items():
                gain = mine - values
                row[f"minus {reference}"] = {
                    "mean": gain.mean().item(),
                    "over_seeds": interval(gain.mean(1)),
                    "over_images": interval(gain.mean(0)),
                }
            judge = lambda p: task.objective.each(p, labels).mean(1)  # noqa: E731
            row["identity"] = identity_report(
                task.network.alignment, nets, references["twins"], probs, twin_probs, judge, task.objective.kind == "classes"
            )
            report["policies"][name]["steps"][str(k)] = row
            ratio = f"{row['identity']['aligned_distance']['ratio']:.2f}"
            against = row["minus strong twins on train + reward"]
            shown = f"{100 * against['mean']:+.2f} [{', '.join(f'{100 * x:+.2f}' for x in against['over_images'])}]"
            rows.append([name, str(k), *_cells(mine.mean(1)), ratio, shown])
    write_atomic(options.out, json.dumps(report, indent=1) + "\n")
    columns = ["weights", "K", "accuracy", "worst", "aligned distance", "minus strong twins, over images"]
    table(f"{task.name}, {options.seeds} seeds, {len(labels)} test images", columns, rows)


def _cells(values: Tensor) -> list[str]:
    return [f"{percent(values.mean().item())} ± {100 * values.std().item():.2f}", percent(values.min().item())]


if __name__ == "__main__":
    main()
