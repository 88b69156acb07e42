"""Start weights of other laws than torch's default, through shipped policies: accuracy on val with each tensor as it is and at
the root mean square of start weights, which is what synthesis does.

    python benchmarks/starts.py -o benchmarks/results/starts.json

64 unseen seeds a law; a law draws every tensor of two and more dimensions, biases are zero or torch's default.
"""

import argparse
import json
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import init

from synthnet.audit import summary
from synthnet.bundled import load_policy
from synthnet.engine import score
from synthnet.files import write_atomic
from synthnet.nets import match_start
from synthnet.policy import synthesize_flat
from synthnet.progress import Bar
from synthnet.tasks import Task, build_task

POLICIES = {"digits-mlp": "digits-mlp", "mnist5k-mlp": "mnist5k-mlp", "mnist5k-cnn-family": "mnist5k-cnn"}
LAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch's default": lambda value: value,
    "Kaiming normal": init.kaiming_normal_,
    "Kaiming uniform": init.kaiming_uniform_,
    "Xavier normal": init.xavier_normal_,
    "Xavier uniform": init.xavier_uniform_,
    "orthogonal": init.orthogonal_,
    "N(0, 0.02)": lambda value: init.normal_(value, std=0.02),
    "N(0, 1)": init.normal_,
    "default x 10": lambda value: value.mul_(10),
    "default / 10": lambda value: value.div_(10),
}
SCALED = {"default x 10": 10.0, "default / 10": 0.1}  # biases go with the weights


def drawn(task: Task, law: str, zero_biases: bool, seeds: list[int]) -> Tensor:
    """Start weights [seed weights] of a law."""
    spec, made = task.network.spec, []
    for seed, flat in zip(seeds, task.draw_start("val", seeds), strict=True):
        torch.manual_seed(seed)
        tensors = {}
        for name, value in spec.unflatten(flat.clone()).items():
            bias = value * 0 if zero_biases else value * SCALED.get(law, 1.0)
            tensors[name] = LAWS[law](value) if value.ndim > 1 else bias
        made.append(spec.flatten(tensors))
    return torch.stack(made)


def measure(name: str, task: Task, law: str, zero_biases: bool, seeds: list[int]) -> dict:
    policy, spec = load_policy(name), task.network.spec
    k, starts = int(policy.record["best_k"]), drawn(task, law, zero_biases, seeds)
    matched = torch.stack([match_start(spec, flat)[0] for flat in starts])
    inputs, labels = task.examples("val")
    accuracy = {
        way: summary(score(task.network, synthesize_flat(policy, flat, k, task.network)[:, -1], inputs, labels)[0])
        for way, flat in (("as it is", starts), ("matched", matched))
    }
    return {"k": k, **accuracy, "same bits": bool(torch.equal(starts, matched))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--seeds", type=int, default=64)
    options = parser.parse_args()
    seeds, results = list(range(options.seeds)), {"split": "val", "seeds": options.seeds}
    with Bar("starts", len(POLICIES) * len(LAWS) * 2) as bar, torch.no_grad():
        for name, target in POLICIES.items():
            task, rows = build_task(target), {}
            for law in LAWS:
                for zero in (False, True):
                    rows[f"{law}{', biases 0' if zero else ''}"] = measure(name, task, law, zero, seeds)
                    bar.advance()
            default = rows["torch's default"]["matched"]["mean"]
            for row in rows.values():
                row["minus default"] = row["matched"]["mean"] - default
            results[name] = rows
    write_atomic(options.out, json.dumps(results, indent=1) + "\n")
    for name in POLICIES:
        for law, row in results[name].items():
            ways = f"{row['as it is']['mean']:.4f} -> {row['matched']['mean']:.4f} ({100 * row['minus default']:+.2f})"
            print(f"{name:20} {law:32} {ways}")


if __name__ == "__main__":
    main()
