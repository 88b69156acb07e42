"""Synthesised nets as a start for training: accuracy on val by epoch beside random starts and twins.

    python benchmarks/finetune.py -o benchmarks/results/finetune.json

Every net is trained on by plain optimisers, SGD with momentum 0.9 and Adam, at several rates; 32 unseen seeds, one batch order.
"""

import argparse
import json

import torch
from torch import Tensor

from synthnet.audit import summary
from synthnet.bundled import load_policy
from synthnet.engine import cross_entropy, score
from synthnet.files import write_atomic
from synthnet.policy import synthesize_flat
from synthnet.progress import Bar
from synthnet.tasks import Task, build_task, grow_twins

POLICIES = {"digits-mlp": "digits-mlp", "mnist5k-mlp": "mnist5k-mlp", "mnist5k-cnn-family": "mnist5k-cnn"}
RULES = {f"sgd {rate:g}": (torch.optim.SGD, {"lr": rate, "momentum": 0.9}) for rate in (1e-2, 1e-3, 1e-4)}
RULES |= {f"adam {rate:g}": (torch.optim.Adam, {"lr": rate}) for rate in (2e-3, 2e-4, 2e-5)}
EPOCHS, BATCH = (0, 1, 5), 64


def trained(task: Task, flat: Tensor, rule: str) -> dict[str, dict]:
    """Accuracy on val of nets [net weights] after so many epochs."""
    kind, settings = RULES[rule]
    weights = flat.clone().requires_grad_()
    optimizer, draw = kind([weights], **settings), torch.Generator().manual_seed(0)
    (inputs, labels), found = task.examples("train"), {}
    for epoch in range(max(EPOCHS) + 1):
        if epoch in EPOCHS:
            found[str(epoch)] = summary(score(task.network, weights.detach(), *task.examples("val"))[0])
        if epoch == max(EPOCHS):
            return found
        for batch in torch.randperm(len(inputs), generator=draw).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(task.network.logits(weights, inputs[batch]), labels[batch]).sum().backward()
            optimizer.step()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--seeds", type=int, default=32)
    options = parser.parse_args()
    results = {"split": "val", "seeds": options.seeds}
    with Bar("finetune", len(POLICIES) * len(RULES) * 3) as bar:
        for name, target in POLICIES.items():
            task, policy = build_task(target), load_policy(name)
            start = task.draw_start("val", list(range(options.seeds)))
            made = synthesize_flat(policy, start, int(policy.record["best_k"]), task.network)[:, -1]
            twins = grow_twins(task, start)
            results[name] = rows = {}
            for rule in RULES:
                for kind, flat in (("synthesised", made), ("random", start), ("twin", twins)):
                    rows[f"{rule}, {kind}"] = trained(task, flat, rule)
                    bar.advance()
    write_atomic(options.out, json.dumps(results, indent=1) + "\n")
    for name in POLICIES:
        for row, by_epoch in results[name].items():
            print(f"{name:20} {row:26}", *(f"{100 * by_epoch[str(epoch)]['mean']:.2f}" for epoch in EPOCHS))


if __name__ == "__main__":
    main()
