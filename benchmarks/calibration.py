"""What has no useful gradient: worst-class accuracy and calibration error of a policy before and after GRPO on them.

python benchmarks/calibration.py AFTER [AFTER …] --before BEFORE [--steps 2] [--seeds 256] -o FILE.json

Test split, fresh seeds; one AFTER for each policy seed. Beside them: SGD twins (on train, and on train + reward), and twins
and policies with their logits divided by one temperature, fitted by cross-entropy on the reward split over 64 val seeds.
Calibration error: 15 bins of equal mass. Worst class: the lowest of the ten class accuracies of a net. Intervals are
bootstrap, over seeds and over test images.
"""

import argparse
import json

import torch
from torch import Tensor

from synthnet.audit.evaluation import interval, split_data, summary, task_of_policy
from synthnet.bundled import load_policy
from synthnet.console import percent, table
from synthnet.engine.network import Network
from synthnet.engine.scoring import predictions
from synthnet.files import write_atomic
from synthnet.grpo.rewards.calibration import calibration_error
from synthnet.policy.rollout import synthesize_flat
from synthnet.seeds import generator
from synthnet.tasks.twins import grow_twins

TEMPERATURES = torch.logspace(-0.7, 0.7, 71)
IMAGE_DRAWS = 200
IMAGE_NETS = 32  # nets whose measures are drawn again for each bootstrap draw of images


def heated(probabilities: Tensor, temperature: float) -> Tensor:
    """Class probabilities [net example class] with the logits divided by a temperature."""
    return torch.softmax(probabilities.clamp_min(1e-12).log() / temperature, -1)


def fitted_temperature(net: Network, nets: Tensor, inputs: Tensor, labels: Tensor) -> float:
    """The one temperature with the lowest mean cross-entropy over nets and images."""
    probabilities = predictions(net, nets, inputs)
    losses = []
    for temperature in TEMPERATURES.tolist():
        own = heated(probabilities, temperature).gather(-1, labels.expand(len(nets), -1).unsqueeze(-1))
        losses.append(-own.clamp_min(1e-12).log().mean().item())
    return TEMPERATURES[losses.index(min(losses))].item()


def measures(probabilities: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Accuracy, worst-class accuracy and calibration error of each net [net]."""
    right = (probabilities.argmax(-1) == labels).double()
    of_class = torch.nn.functional.one_hot(labels).double()
    return {
        "accuracy": right.mean(-1),
        "worst_class": (right @ of_class / of_class.sum(0)).amin(1),
        "calibration_error": calibration_error(probabilities, labels),
    }


def over_images(after: Tensor, before: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """Bootstrap 95 % intervals over test images of the difference of each measure's mean over nets."""
    draw, found = generator(0, "images"), []
    for _ in range(IMAGE_DRAWS):
        picked = torch.randint(len(labels), (len(labels),), generator=draw)
        pair = [measures(p[:IMAGE_NETS, picked], labels[picked]) for p in (after, before)]
        found.append({name: pair[0][name].mean() - pair[1][name].mean() for name in pair[0]})
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    return {name: torch.quantile(torch.stack([row[name] for row in found]), ends).tolist() for name in found[0]}


def differences(run: str, other: str, found: dict, probabilities: dict, labels: Tensor) -> dict:
    """What a run has more than another row, with intervals over seeds and over test images."""
    images = over_images(probabilities[run], probabilities[other], labels)
    gains = {name: values - found[other][name] for name, values in found[run].items()}
    return {n: {"mean": g.mean().item(), "over_seeds": interval(g), "over_images": images[n]} for n, g in gains.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("after", nargs="+")
    parser.add_argument("--before", required=True)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=256)
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    runs = {f"after, seed {i}": path for i, path in enumerate(options.after)}
    policies = {name: load_policy(path) for name, path in {**runs, "before": options.before}.items()}
    task = task_of_policy(policies["before"])
    net, (inputs, labels), fit = task.network, split_data(task, "test"), task.examples("reward")
    start, val = task.draw_start("test", list(range(options.seeds))), task.draw_start("val", list(range(64)))
    makers = {name: lambda w, p=p: synthesize_flat(p, w, options.steps, net)[:, -1] for name, p in policies.items()}
    makers["SGD twins"] = lambda w: grow_twins(task, w)
    makers["SGD twins on train + reward"] = lambda w: grow_twins(task, w, "train+reward")
    probabilities, temperatures = {}, {}
    for name, make in makers.items():
        temperatures[name] = fitted_temperature(net, make(val), *fit)
        probabilities[name] = predictions(net, make(start), inputs)
        probabilities[f"{name}, one temperature"] = heated(probabilities[name], temperatures[name])
    found = {name: measures(p, labels) for name, p in probabilities.items()}
    report = {"task": task.name, "steps": options.steps, "seeds": options.seeds, "n_images": len(labels)}
    report |= {"stages": {name: policy.record["stages"] for name, policy in policies.items()}, "temperatures": temperatures}
    report["weights"] = {name: {key: summary(v) for key, v in m.items()} for name, m in found.items()}
    others = ("before", "SGD twins", "SGD twins on train + reward", "before, one temperature", "SGD twins, one temperature")
    report["after_minus"] = {
        run: {other: differences(run, other, found, probabilities, labels) for other in others} for run in runs
    }
    write_atomic(options.out, json.dumps(report, indent=1) + "\n")
    rows = [
        [name, *(f"{percent(m[key].mean().item())} ± {100 * m[key].std().item():.2f}" for key in m)]
        for name, m in found.items()
    ]
    title = f"{task.name}, K = {options.steps}, {options.seeds} unseen seeds, test split"
    table(title, ["weights", "accuracy", "worst class", "calibration error"], rows)


if __name__ == "__main__":
    main()
