"""Nets for integer inference: policies before and after GRPO on rounded nets, beside twins rounded later or trained for it.

    python benchmarks/quantised.py BEFORE AFTER --task mnist5k-mlp -o benchmarks/results/int4-mnist5k-mlp.json

Weights of every net are rounded to the nearest of 2^bits − 1 levels (`engine/quantised.py`) before the test split judges it.
Twins by the fixed recipe, and with --strong strong ones, are rounded after training; quantisation-aware twins are trained by
the fixed recipe with rounded weights in the forward pass and a straight-through gradient (Jacob et al. 2018, arXiv 1712.05877).
"""

import argparse
import json

import torch
from torch import Tensor

from synthnet.audit import summary
from synthnet.audit.evaluation import interval, split_data
from synthnet.bundled import load_policy
from synthnet.console import percent, table
from synthnet.engine import predictions, rounded
from synthnet.files import write_atomic
from synthnet.nets import aligned_distance
from synthnet.policy import synthesize_flat
from synthnet.seeds import generator
from synthnet.tasks import Task, build_task, grow_strong, grow_twins, recipe_of


def aware_twins(task: Task, start: Tensor, bits: int) -> Tensor:
    """Nets [net weights] trained by the task's recipe, rounded in every forward pass; of nets without statistics of a norm."""
    recipe, (inputs, labels) = recipe_of(task), task.examples("train")
    nets = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([nets], recipe.learning_rate)
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(inputs), generator=generator(0, "aware", epoch))
        for rows in order.split(recipe.batch_size):
            seen = nets + (rounded(task.network.spec, nets, bits) - nets).detach()
            loss = task.objective.losses(task.network.logits(seen, inputs[rows]), labels[rows]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return nets.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policies", nargs=2, metavar="POLICY")
    parser.add_argument("--task", required=True)
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--strong", action="store_true", help="strong twins too, whose recipe may have to be searched for")
    options = parser.parse_args()
    task, bits = build_task(options.task), options.bits
    inputs, labels = split_data(task, "test")
    start = task.draw_start("test", list(range(options.seeds)))
    right = lambda nets: task.objective.each(predictions(task.network, nets, inputs), labels)  # noqa: E731
    twins = grow_twins(task, start)
    made = {
        "twins": twins,
        **({"strong twins": grow_strong(task, start)[0]} if options.strong else {}),
        "quantisation-aware twins": aware_twins(task, start, bits),
    }
    for name, path in zip(("before", "after"), options.policies, strict=True):
        policy = load_policy(path)
        made |= {f"{name}, K = {k}": synthesize_flat(policy, start, k, task.network)[:, -1] for k in (1, 2)}
    coarse = {name: right(rounded(task.network.spec, nets, bits)) for name, nets in made.items()}
    apart = aligned_distance(task.network.alignment, twins)
    report = {"task": task.name, "bits": bits, "seeds": options.seeds, "n_images": len(labels), "nets": {}}
    report["policies"] = dict(zip(("before", "after"), options.policies, strict=True))
    rows = []
    for name, nets in made.items():
        gain = coarse[name] - coarse["twins"]
        found = {"plain": summary(right(nets).mean(1)), "rounded": summary(coarse[name].mean(1))}
        found["minus rounded twins"] = {
            "mean": gain.mean().item(),
            "over_seeds": interval(gain.mean(1)),
            "over_images": interval(gain.mean(0)),
        }
        found["aligned_distance"] = aligned_distance(task.network.alignment, nets) / apart
        report["nets"][name] = found
        bounds = ", ".join(f"{100 * x:+.2f}" for x in found["minus rounded twins"]["over_images"])
        shown = [f"{percent(found[kind]['mean'])} ± {100 * found[kind]['sd']:.2f}" for kind in ("plain", "rounded")]
        rows.append([name, *shown, f"{100 * gain.mean():+.2f} [{bounds}]", f"{found['aligned_distance']:.2f}"])
    write_atomic(options.out, json.dumps(report, indent=1) + "\n")
    columns = ["nets", "as they are", f"{bits} bits", "minus rounded twins, over images", "aligned distance"]
    table(f"{task.name}, {options.seeds} seeds, {len(labels)} test images", columns, rows)


if __name__ == "__main__":
    main()
