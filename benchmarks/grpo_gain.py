"""What GRPO gained from one policy, over several runs of it, beside everything else that could have been done at the same cost.

python benchmarks/grpo_gain.py BEFORE AFTER [AFTER …] [--also NAME=POLICY …] [--steps 1 2] [--draws N] [--es-seeds 16] -o
FILE.json

Test split, fresh seeds. The gap is the one between the policy before and SGD twins trained on train + reward images, which
is what rewards are measured on. Beside the runs: best-of-K sampling of the policy before at the same number of evaluations
(training evaluations / seeds, by the same reward, noise tuned on val: sigma, one for all weights or shared out among roles),
evolution strategies on single nets from the same start weights (as many evaluations per net as the whole training had, sigma
and rate tuned on val), and policies named by --also (pathwise fine-tuning at the same wall time). Identity as ratios to the
twins, before and after.
"""

import argparse
import json

import torch
from controls import tuned, tuned_best_of
from torch import Tensor

from synthnet.audit.evaluation import evaluate_policy, interval, split_data, summary, task_of_policy
from synthnet.bundled import load_policy
from synthnet.console import percent, table
from synthnet.engine.quality import quality
from synthnet.engine.scoring import score
from synthnet.files import write_atomic
from synthnet.grpo.sample import mirrored
from synthnet.nets.start import init_scale
from synthnet.policy.policy import Policy
from synthnet.policy.rollout import synthesize_flat
from synthnet.seeds import generator
from synthnet.tasks.task import Task
from synthnet.tasks.twins import grow_twins

ES_GROUP = 64  # mirrored evaluations per step of evolution strategies
ES_SETTINGS = ((0.05, 0.05), (0.1, 0.05), (0.1, 0.1), (0.2, 0.1))  # sigma and learning rate, in scale units


@torch.no_grad()
def evolve(task: Task, start: Tensor, evaluations: int, sigma: float, rate: float) -> Tensor:
    """Evolution strategies (Salimans et al. 2017, arXiv 1703.03864) with Adam on each net alone, by the reward."""
    inputs, labels = task.examples("train+reward")
    scale, made = init_scale(task.network.spec), []
    for number, weights in enumerate(start):
        mean = (weights / scale).clone().requires_grad_(True)
        optimizer = torch.optim.Adam([mean], lr=rate)
        for step in range(evaluations // ES_GROUP):
            draw = generator(0, "es", number, step)
            noise = mirrored(torch.randn((ES_GROUP // 2, len(weights)), generator=draw))
            chosen = torch.randperm(len(inputs), generator=draw)[:512]
            found = score(task.network, (mean + sigma * noise) * scale, inputs[chosen], labels[chosen])
            reward = quality(*found, task.objective.chance)
            advantage = (reward - reward.mean()) / reward.std().clamp_min(1e-8)
            mean.grad = -(advantage.float()[:, None] * noise).mean(0) / sigma
            optimizer.step()
        made.append(mean.detach() * scale)
    return torch.stack(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before")
    parser.add_argument("after", nargs="+")
    parser.add_argument("--also", nargs="+", default=[], metavar="NAME=POLICY")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seeds", type=int, default=256)
    parser.add_argument("--draws", type=int, help="best-of-K draws per seed; by default the runs' evaluations / seeds")
    parser.add_argument("--best-of-seeds", type=int, default=64)
    parser.add_argument("--best-of-images", type=int, help="reward images that best-of-K chooses by; by default all")
    parser.add_argument("--es-seeds", type=int, default=8)
    parser.add_argument("--es-evaluations", type=int, default=65536)
    parser.add_argument("--evaluations", type=int, required=True, help="reward evaluations of one GRPO run")
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    before = load_policy(options.before)
    task = task_of_policy(before)
    inputs, labels = split_data(task, "test")
    start = task.draw_start("test", list(range(options.seeds)))
    twins = grow_twins(task, start, "train+reward")
    reference = score(task.network, twins, inputs, labels)[0]
    named = {"before": options.before, **{f"GRPO, run {i}": path for i, path in enumerate(options.after)}}
    named |= dict(entry.partition("=")[::2] for entry in options.also)
    report = {
        "task": task.name,
        "evaluations": options.evaluations,
        "twins": summary(reference),
        "policies": {},
        "gap_closed": {},
    }
    rows, base = [], {k: score(task.network, _nets(before, start, k, task), inputs, labels)[0] for k in options.steps}

    def add(name: str, k: int, accuracies: Tensor, n_seeds: int, **more) -> None:
        gap = (reference[:n_seeds].mean() - base[k][:n_seeds].mean()).item()
        gain = accuracies - base[k][:n_seeds]
        found = {**summary(accuracies), "gap_closed": gain.mean().item() / gap, "gain_interval": interval(gain), **more}
        report["gap_closed"].setdefault(name, {})[str(k)] = found
        cells = [f"{percent(found['mean'])} ± {100 * found['sd']:.2f}", percent(found["min"]), percent(found["gap_closed"], 0)]
        rows.append([name, str(k), *cells])

    for name, path in named.items():
        policy = load_policy(path)
        report["policies"][name] = {
            **evaluate_policy(policy, task, options.seeds, options.steps, twins=twins), "stages": policy.record["stages"],
        }  # fmt: skip
        for k in options.steps:
            add(name, k, score(task.network, _nets(policy, start, k, task), inputs, labels)[0], options.seeds)
    draws = options.draws or options.evaluations // options.seeds
    few = start[: options.best_of_seeds]
    for k in options.steps:
        nets, noise = tuned_best_of(before, task, few, k, draws, options.best_of_images)
        accuracies = score(task.network, nets, inputs, labels)[0]
        add("best of K", k, accuracies, options.best_of_seeds, **noise, draws=draws, images=options.best_of_images)
    if options.es_seeds:
        val = task.draw_start("val", list(range(2)))
        setting = tuned(task, ES_SETTINGS, lambda s: evolve(task, val, options.es_evaluations // 8, *s))
        nets = evolve(task, start[: options.es_seeds], options.es_evaluations, *setting)
        how = {"sigma": setting[0], "rate": setting[1], "evaluations_per_net": options.es_evaluations}
        add(
            "evolution strategies, one net at a time",
            options.steps[0],
            score(task.network, nets, inputs, labels)[0],
            options.es_seeds,
            **how,
        )
    write_atomic(options.out, json.dumps(report, indent=1) + "\n")
    title = f"{task.name}: twins on train + reward {percent(report['twins']['mean'])} ± {100 * report['twins']['sd']:.2f}"
    table(title, ["weights", "K", "accuracy", "worst", "gap closed"], rows)


def _nets(policy: Policy, start: Tensor, k: int, task: Task) -> Tensor:
    return synthesize_flat(policy, start, k, task.network)[:, -1]


if __name__ == "__main__":
    main()
