"""The original proof of concept: a flat MLP on consecutive states of ONE training run, then asked about unseen inits.

synthnet zoo task=mnist-targetcnn zoo.runs=1 zoo.heldout=3 'zoo.states=[0,.1,.2,.3,.4,.5,.6,.7,.8,.9,1]'
run_dir=runs/zoo-one-run python benchmarks/proof_of_concept.py runs/zoo-one-run --task mnist-targetcnn -o FILE.json

The policy is the one of the original (hidden 512, time embedding 64, next weights predicted outright, 50 epochs over the pairs,
Adam 1e-3): 432M weights for mnist-targetcnn, about 7 GB with Adam, so it is trained here without the copies that a stage keeps.
It predicts W1 … from an unseen W0 over 6 and 11 steps. What is asked: does it leap, and do its outputs depend on the init?
"""

import argparse
import json
import time

import torch
from torch import Tensor

from synthnet.audit.evaluation import split_data
from synthnet.audit.novelty import error_iou
from synthnet.console import percent, table
from synthnet.engine.network import Network
from synthnet.engine.scoring import predictions
from synthnet.files import write_atomic
from synthnet.policy.policy import ActionConfig, Policy, PolicyConfig
from synthnet.policy.rollout import synthesize_flat
from synthnet.progress import Bar
from synthnet.seeds import generator
from synthnet.tasks import Task, build_task
from synthnet.train.zoo import Zoo

EPOCHS = 50
STEPS = (6, 11)


class RawPolicy(Policy):
    """A policy over weights as they are, as the original's; SynthNet's own see them in units of their start scale."""

    def scale(self, net: Network) -> Tensor:
        return torch.ones(net.spec.n_weights)


def train(task: Task, states: Tensor, head: str, batch: int, units: str) -> tuple[Policy, float]:
    """A policy on the consecutive pairs of one run [state weights], and its last epoch's mean loss (in its units)."""
    n_pairs = len(states) - 1
    backbone = {"name": "flat_mlp", "hidden": 512, "step_dim": 64}
    config = PolicyConfig({"name": "chunk", "size": 0}, backbone, ActionConfig(head), k_max=max(n_pairs, *STEPS))
    policy = {"raw": RawPolicy, "scale": Policy}[units].create(config, [task.arch], 0)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3, fused=True)
    scaled, losses = states / policy.scale(task.network), []
    with Bar(f"proof of concept, head {head}", EPOCHS) as bar:
        for epoch in range(EPOCHS):
            order = torch.randperm(n_pairs, generator=generator(0, "proof-of-concept", epoch))
            losses = []
            for chosen in order.split(batch):
                predicted = policy(scaled[chosen], n_pairs - chosen, task.network).mean
                loss = (predicted - scaled[chosen + 1]).square().mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            bar.advance(note=f"loss {losses[-1]:.4f}")
    return policy.eval(), sum(losses) / len(losses)


def measure(task: Task, policy: Policy, run: Tensor, starts: Tensor, n_steps: int) -> dict:
    """Accuracy by step of each unseen start, and how far the outputs depend on it."""
    inputs, labels = split_data(task, "test")
    made = synthesize_flat(policy, starts, n_steps, task.network)
    wrong = lambda nets: predictions(task.network, nets, inputs).argmax(-1) != labels  # noqa: E731
    accuracy = torch.stack([1 - wrong(state).double().mean(1) for state in (starts, *made.unbind(1))], dim=1)
    last, trained = made[:, -1], run[-1]
    apart, before = (torch.pdist(nets).mean().item() for nets in (last, starts))
    return {
        "accuracy_by_step": accuracy.tolist(),
        "distance_between_starts": before,
        "distance_between_outputs": apart,
        "distance_to_the_training_run": (last - trained).norm(dim=1).mean().item(),
        "distance_of_the_run_from_its_start": (trained - run[0]).norm().item(),
        "error_iou_with_the_training_run": error_iou(wrong(last), wrong(trained[None])).mean().item(),
        "disagreement_with_the_training_run": (
            (predictions(task.network, last, inputs).argmax(-1) != predictions(task.network, trained[None], inputs).argmax(-1))
            .double()
            .mean()
            .item()
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("zoo")
    parser.add_argument("--task", required=True)
    parser.add_argument("--heads", nargs="+", default=["x0"], help="x0: the next weights outright, as the original; delta")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--units", choices=["raw", "scale"], default="raw", help="what the policy sees: weights as they are, or scaled"
    )
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    task, zoo = build_task(options.task), Zoo.open(options.zoo)
    run, starts = zoo.states("zoo", 1)[0], zoo.states("heldout")[:, 0]
    inputs, labels = split_data(task, "test")
    trained = (predictions(task.network, run, inputs).argmax(-1) == labels).double().mean(1)
    report, rows = (
        {
            "task": task.name,
            "units": options.units,
            "batch": options.batch,
            "training_run_accuracy_by_state": trained.tolist(),
            "heads": {},
        },
        [],
    )
    for head in options.heads:
        began = time.monotonic()
        policy, loss = train(task, run, head, options.batch, options.units)
        found = {"parameters": policy.n_parameters, "last_loss": loss, "seconds_s": round(time.monotonic() - began)}
        for n_steps in STEPS:
            row = measure(task, policy, run, starts, n_steps)
            found[f"steps_{n_steps}"] = row
            accuracy = torch.tensor(row["accuracy_by_step"])
            cells = [" / ".join(percent(a, 1) for a in accuracy[:, step].tolist()) for step in (0, 1, n_steps)]
            ratio = f"{row['distance_between_outputs'] / row['distance_between_starts']:.4f}"
            rows.append([f"{head}, {n_steps} steps", *cells, ratio, f"{row['error_iou_with_the_training_run']:.3f}"])
        report["heads"][head] = found
        write_atomic(options.out, json.dumps(report, indent=1) + "\n")
        del policy
    columns = ["head", "start", "one step", "last step", "distance between outputs / starts", "error-IoU with the run"]
    table(f"{task.name}: training run {percent(trained[-1].item())}", columns, rows)


if __name__ == "__main__":
    main()
