"""Image policies that ship, beside twins and strong twins, on images as they are and as they are not; one table.

    python benchmarks/robustness.py [POLICY …] [--seeds 48] -o benchmarks/results/robustness.json

Test split, unseen seeds, each policy's first net at its best K on val; by default all that are told no spec, and not `one`.
Twins by the task's fixed recipe and strong twins (by what a search on val finds in 150 seconds, or found before; `searched to
its end` says which), each in a batch order of its own, from the same start weights.

noise: accuracy under Gaussian noise of half a pixel's deviation; shift: by one pixel to each of four sides, the border
repeated; FGSM: after one step of a tenth of a deviation along the sign of each net's own gradient (Goodfellow et al. 2015,
arXiv 1412.6572); calibration error: 15 bins of equal mass; confidence in shuffled pixels and in noise.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from synthnet.audit import summary
from synthnet.audit.basins import confidence
from synthnet.audit.evaluation import interval, split_data, task_of_policy
from synthnet.bundled import load_policy, policies
from synthnet.console import percent, table
from synthnet.engine import Network, Training, Variation, predictions
from synthnet.engine.variation import image_shape
from synthnet.files import write_atomic
from synthnet.grpo.rewards.calibration import calibration_error
from synthnet.nets import aligned_distance
from synthnet.policy import synthesize_flat
from synthnet.seeds import generator
from synthnet.tasks import Task, recipe_of, strong_recipe, trained

NOISE, STEP, FEW = 0.5, 0.1, 4  # deviations of a pixel; nets whose gradients are held at a time
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1))
SEARCH = 150.0  # seconds after which a search for strong twins ends
COLUMNS = ("accuracy", "noise", "shift", "fgsm", "calibration_error", "shuffled", "in_noise")


def shifted(images: Tensor, side: tuple[int, int]) -> Tensor:
    """Flattened square images [example pixel], moved by one pixel."""
    shape = image_shape(images)
    wide = F.pad(images.view(len(images), *shape), (1, 1, 1, 1), mode="replicate")
    down, across = (1 - each for each in side)
    return wide[:, :, down : down + shape[1], across : across + shape[2]].reshape(images.shape)


def attacked(net: Network, nets: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Whether each net is right about each image after a step along the sign of its own gradient [net example]."""
    found = []
    for few in nets.split(FEW):
        own = images.expand(len(few), *images.shape).clone().requires_grad_()
        loss = F.cross_entropy(net.logits(few, own, own_inputs=True).flatten(0, 1), labels.repeat(len(few)))
        (slope,) = torch.autograd.grad(loss, own)
        with torch.no_grad():
            found.append(net.logits(few, own + STEP * slope.sign(), own_inputs=True).argmax(-1) == labels)
    return torch.cat(found)


def measures(net: Network, nets: Tensor, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Each measure of each net [net], but accuracy [net example]."""
    said, sure = predictions(net, nets, images), confidence(net, images, nets)
    right = lambda seen: net.objective.each(predictions(net, nets, seen), labels).mean(1)  # noqa: E731
    return {
        "accuracy": net.objective.each(said, labels),
        "noise": right(Variation(NOISE)(images, generator(0, "robustness"))),
        "shift": torch.stack([right(shifted(images, side)) for side in SIDES]).mean(0),
        "fgsm": attacked(net, nets, images, labels).double().mean(1),
        "calibration_error": calibration_error(said, labels),
        "shuffled": sure["shuffled"],
        "in_noise": sure["noise"],
    }


def measure(name: str, n_seeds: int) -> dict:
    policy = load_policy(name)
    task: Task = task_of_policy(policy)
    start, (images, labels) = task.draw_start("test", list(range(n_seeds))), split_data(task, "test")
    strong, order, best = strong_recipe(task, SEARCH), list(range(n_seeds)), policy.record["best_k"]
    nets = {
        "twins": trained(task, start, Training(recipe_of(task), per_run_order=True), run_ids=order),
        "strong twins": trained(task, start, strong.training, run_ids=order),
        "SynthNet": synthesize_flat(policy, start, best, task.network)[:, -1],
    }
    found = {kind: measures(task.network, each, images, labels) for kind, each in nets.items()}
    report = {"task": task.name, "net": task.arch.label, "seeds": n_seeds, "n_images": len(labels), "best_k": best}
    found_by = {"quality on val": strong.val, "tried": strong.tried, "searched to its end": strong.done}
    report["strong_recipe"] = {**vars(strong.recipe), **found_by}
    report["nets"] = {
        kind: {key: summary(value.mean(1) if key == "accuracy" else value) for key, value in row.items()}
        for kind, row in found.items()
    }
    for other in ("twins", "strong twins"):
        gain = found["SynthNet"]["accuracy"] - found[other]["accuracy"]
        ends = {"over_seeds": interval(gain.mean(1)), "over_images": interval(gain.mean(0))}
        report[f"minus {other}"] = {"mean": gain.mean().item(), **ends}
    apart = {kind: aligned_distance(task.network.alignment, each) for kind, each in nets.items()}
    report["aligned_distance"] = {kind: apart["SynthNet"] / apart[kind] for kind in ("twins", "strong twins")}
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policies", nargs="*")
    parser.add_argument("--seeds", type=int, default=48)
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    found: dict = json.loads(Path(options.out).read_text()) if Path(options.out).exists() else {}
    rows = []
    on_images = [name for name in policies() if "mnist" in name or "digits" in name]
    for name in options.policies or [name for name in on_images if not load_policy(name).reads_spec]:
        found[name] = measure(name, options.seeds)
        write_atomic(options.out, json.dumps(found, indent=1) + "\n")
        for kind, row in found[name]["nets"].items():
            cells = [percent(row[key]["mean"]) for key in COLUMNS]
            gain = found[name].get(f"minus {kind}")
            shown = f"{100 * gain['mean']:+.2f} [{', '.join(f'{100 * x:+.2f}' for x in gain['over_images'])}]" if gain else ""
            rows.append([name if kind == "twins" else "", kind, *cells, shown])
        table("image policies that ship", ["policy", "nets", *COLUMNS, "SynthNet minus these, over images"], rows[-3:])


if __name__ == "__main__":
    main()
