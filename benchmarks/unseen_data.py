"""What a policy makes of a data set that it has never seen, when it is told that one's statistics; each left out in turn.

    python benchmarks/unseen_data.py digits=runs/only-digits/policy.safetensors mnist8=runs/only-mnist8/policy.safetensors \\
        both=digits-mnist8 -o benchmarks/results/unseen-data.json

LABEL=POLICY: told statistics (backbone.data=true). Every policy makes nets of the same start weights for every data set, told
that one's statistics, and told another's. Beside: twins, and the nearest class mean, which needs no net: the very class means
that stand in the statistics, and nothing else. Test split, unseen seeds.
"""

import argparse
import json

import torch
from torch import Tensor

from synthnet.audit.evaluation import summary
from synthnet.bundled import load_policy
from synthnet.console import percent, table
from synthnet.engine import PICTURE
from synthnet.files import write_atomic
from synthnet.policy import Policy, synthesize_flat
from synthnet.tasks import Task, build_task, grow_twins
from synthnet.tasks.judging import judge

TASKS = ("digits-mlp", "mnist8-mlp")  # one net, 64-32-10, on two data sets of ten digits


def nearest_class_mean(statistics: Tensor, inputs: Tensor, labels: Tensor) -> float:
    """Accuracy of the nearest of the class means that a policy is told [statistics], on images of as many pixels."""
    mean, _, *of_class = statistics.view(-1, PICTURE**2)
    return ((torch.cdist(inputs, mean + torch.stack(of_class)).argmin(1) == labels).double().mean()).item()


def told(policy: Policy, task: Task, statistics: Tensor, start: Tensor, k: int) -> Tensor:
    """The nets [net weights] that a policy just read makes for a task's net where it is told these statistics."""
    policy.data_sets = {task.name: statistics.tolist()}
    return synthesize_flat(policy, start, k, task.network)[:, -1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policies", nargs="+", metavar="LABEL=POLICY")
    parser.add_argument("--seeds", type=int, default=48)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2])
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    tasks = {name: build_task(name) for name in TASKS}
    report, lines = {}, []
    for name, task in tasks.items():
        start, (inputs, labels) = task.draw_start("test", list(range(options.seeds))), task.test_data()
        score = lambda nets: summary(judge(task, nets, inputs, labels)[0])  # noqa: B023, E731
        row = {"twins": score(grow_twins(task, start)), "class means": nearest_class_mean(task.statistics, inputs, labels)}
        lines.append([name, "nearest class mean", "", percent(row["class means"])])
        lines.append([name, "twins", "", percent(row["twins"]["mean"])])
        for label, path in (each.split("=", 1) for each in options.policies):
            for other, source in tasks.items():
                policy = load_policy(path)  # anew: it keeps what it was told
                by_k = {str(k): score(told(policy, task, source.statistics, start, k)) for k in options.steps}
                row.setdefault(label, {})[other] = by_k
                lines.append([name, label, other, " / ".join(percent(each["mean"]) for each in by_k.values())])
        report[name] = row
    write_atomic(options.out, json.dumps(report, indent=1) + "\n")
    table(
        f"{options.seeds} unseen seeds, test split", ["data set", "learned from", "told statistics of", "K = 1 / 2, %"], lines
    )


if __name__ == "__main__":
    main()
