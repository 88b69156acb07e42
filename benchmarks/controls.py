"""A policy over unseen seeds beside every control, on the test split: one JSON file and one table.

python benchmarks/controls.py POLICY --zoo ZOO_DIR [--before POLICY_BEFORE_GRPO] [--seeds 256] [--split-seed N] -o FILE.json

Controls: start weights; SGD twins by the fixed recipe; strong twins (the best of a search on val); twins trained on train +
reward; SGD tuned on val over nine settings;
SGD with input noise, with soft labels, with both; zoo net + noise (two levels); one constant net; the mean of 16 zoo nets;
best-of-K sampling of the policy before GRPO, with as many draws per seed as asked for.
"""

import argparse
import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from synthnet.audit.evaluation import evaluate_policy, interval, split_data, summary, task_of_policy
from synthnet.bundled import load_policy
from synthnet.console import percent, table
from synthnet.engine import Recipe
from synthnet.engine.population import Training, train_population
from synthnet.engine.quality import quality
from synthnet.engine.scoring import score
from synthnet.files import write_atomic
from synthnet.grpo.noise import role_shares
from synthnet.nets.start import init_scale
from synthnet.policy.policy import Policy
from synthnet.policy.rollout import rollout
from synthnet.seeds import generator
from synthnet.tasks import Task, recipe_of
from synthnet.tasks.twins import grow_twins
from synthnet.train.distil import ensemble_labels
from synthnet.train.zoo import Zoo

RATES, EPOCHS = (1.0, 0.33, 3.0), (1.0, 0.5, 2.0)
NOISES = (0.05, 0.1)  # standard deviations in units of each tensor's initial scale
BEST_OF_SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.4)
BEST_OF_BATCH = 32


def trained(task: Task, start: Tensor, recipe: Recipe, labels: Tensor | None = None, noise: float = 0.0) -> Tensor:
    inputs, own = task.examples("train")
    training = Training(replace(recipe, input_noise=noise))
    labels = own if labels is None else labels
    parts = [train_population(task.network, w, inputs, labels, training, [recipe.epochs])[:, 0] for w in start.split(4096)]
    return torch.cat(parts)


def tuned_recipe(task: Task, seeds: int = 64) -> Recipe:
    """The best of nine settings on val (seeds of purpose val)."""
    start, (inputs, labels) = task.draw_start("val", list(range(seeds))), task.examples("val")
    base, found = recipe_of(task), []
    for rate in RATES:
        for share in EPOCHS:
            recipe = Recipe(base.learning_rate * rate, base.batch_size, round(base.epochs * share))
            accuracy = score(task.network, trained(task, start, recipe), inputs, labels)[0].mean().item()
            found.append((accuracy, recipe))
    return max(found, key=lambda entry: entry[0])[1]


@torch.no_grad()
def best_of(
    policy: Policy, task: Task, start: Tensor, n_steps: int, draws: int, sigma: Tensor, n_images: int | None = None
) -> Tensor:
    """Per seed, the best of `draws` actions at the last step, with noise `sigma` [weights] in scale units, by the reward that
    GRPO had on train + reward images: all, or `n_images` of them.

    The sampling is the one the shipped policies were trained with: earlier steps take the mean action.
    """
    net, (inputs, labels), scale = task.network, task.examples("train+reward"), init_scale(task.network.spec)
    chosen = torch.randperm(len(inputs), generator=generator(0, "best-of-images"))[:n_images]
    inputs, labels = inputs[chosen], labels[chosen]
    state = start if n_steps == 1 else rollout(policy, start, n_steps, net)[-2]
    mean = policy(state / scale, 1, net).mean
    best, top = mean.clone(), torch.full((len(start),), -torch.inf, dtype=torch.float64)
    seeds = torch.arange(len(start))
    for batch in range(draws // BEST_OF_BATCH):
        draw = generator(0, "best-of", n_steps, batch)
        made = mean + sigma * torch.randn((BEST_OF_BATCH, *mean.shape), generator=draw)
        found = score(net, made.flatten(0, 1) * scale, inputs, labels)
        reward = quality(*found, task.objective.chance).view(BEST_OF_BATCH, -1)
        value, which = reward.max(0)
        better = value > top
        best[better], top[better] = made[which, seeds][better], value[better]
    return best * scale


def tuned(task: Task, options, what):
    """The setting whose nets of val seeds are best on val; `what(setting)` gives the nets."""
    inputs, labels = task.examples("val")
    return max(options, key=lambda setting: score(task.network, what(setting), inputs, labels)[0].mean().item())


def tuned_best_of(
    policy: Policy, task: Task, start: Tensor, n_steps: int, draws: int, n_images: int | None = None
) -> tuple[Tensor, dict]:
    """Nets of best-of-K for these start weights, and its noise, tuned on val with a tenth of the draws: sigma, the same for all
    weights or shared out among roles."""
    val, few = task.draw_start("val", list(range(16))), max(draws // 10, BEST_OF_BATCH)
    shares = role_shares(policy, task.members, "train+reward", 0)[policy.layout(task.network).column_of]
    noises = {"weight": torch.ones_like(shares), "role": shares}

    def made(start: Tensor, draws: int, how: tuple[str, float]) -> Tensor:
        return best_of(policy, task, start, n_steps, draws, how[1] * noises[how[0]], n_images)

    how = tuned(task, list(product(noises, BEST_OF_SIGMAS)), lambda how: made(val, few, how))
    return made(start, draws, how), {"sigma_by": how[0], "sigma": how[1]}


def controls(task: Task, zoo: Zoo, n_seeds: int) -> dict[str, Tensor]:
    """Weights [seed weights] of each control that does not depend on the policy."""
    start, net = task.draw_start("test", list(range(n_seeds))), task.network
    states = zoo.states("zoo", 256)[:, -1]
    val = score(net, states, *task.examples("val"))[0]
    soft = ensemble_labels(task, zoo, task.examples("train")[0])
    scale = init_scale(net.spec)
    draw = generator(0, "controls")
    picks = states[torch.randint(len(states), (n_seeds,), generator=draw)]
    made = {
        "SGD twins on train + reward": grow_twins(task, start, "train+reward"),
        "SGD tuned on val": trained(task, start, tuned_recipe(task)),
        "SGD, input noise 0.3": trained(task, start, recipe_of(task), None, 0.3),
        "SGD, soft labels": trained(task, start, recipe_of(task), soft),
        "SGD, soft labels, input noise 0.3": trained(task, start, recipe_of(task), soft, 0.3),
        "constant net (best zoo net on val)": states[val.argmax()].expand(n_seeds, -1).clone(),
        "mean of 16 zoo nets": torch.stack([states[torch.randperm(256, generator=draw)[:16]].mean(0) for _ in range(n_seeds)]),
    }
    for noise in NOISES:
        made[f"zoo net + noise {noise}"] = picks + noise * scale * torch.randn(picks.shape, generator=draw)
    return made


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("policy")
    parser.add_argument("--zoo", required=True)
    parser.add_argument("--before", help="the policy GRPO started from, for best-of-K and the gain of GRPO")
    parser.add_argument("--draws", type=int, default=6400, help="best-of-K: draws per seed (GRPO's evaluations / 256)")
    parser.add_argument("--best-of-seeds", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=256)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--split-seed", type=int, help="by default the policy's own")
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    policy, zoo = load_policy(options.policy), Zoo.open(options.zoo)
    task = task_of_policy(policy, options.split_seed)
    inputs, labels = split_data(task, "test")
    twins = grow_twins(task, task.draw_start("test", list(range(options.seeds))))
    report = evaluate_policy(policy, task, options.seeds, options.steps, twins=twins, strong=True)
    reference = score(task.network, twins, inputs, labels)[0]
    report |= {"stages": policy.record["stages"], "controls": {}}
    for name, weights in controls(task, zoo, options.seeds).items():
        accuracies = score(task.network, weights, inputs, labels)[0]
        gain = accuracies - reference
        report["controls"][name] = {**summary(accuracies), "minus_sgd": gain.mean().item(), "interval": interval(gain)}
    if options.before:
        report["before_grpo"] = evaluate_policy(load_policy(options.before), task, options.seeds, options.steps, twins=twins)
        report["best_of"] = best_of_report(options, task)
    write_atomic(options.out, json.dumps(report, indent=1) + "\n")
    rows = [[name, f"{percent(r['mean'])} ± {100 * r['sd']:.2f}", percent(r["min"])] for name, r in report["controls"].items()]
    for k, row in report["steps"].items():
        rows.append([f"SynthNet, K = {k}", percent(row["accuracy"]["mean"]), percent(row["accuracy"]["min"])])
    table(f"{task.name}, test split, {options.seeds} seeds -> {Path(options.out).name}", ["weights", "accuracy", "worst"], rows)


def best_of_report(options: argparse.Namespace, task: Task) -> dict:
    """Best-of-K for K = 1 and 2 synth steps; sigma chosen on val seeds by val accuracy."""
    inputs, labels = split_data(task, "test")
    start, made = task.draw_start("test", list(range(options.best_of_seeds))), {}
    policy = load_policy(options.before)
    for n_steps in (1, 2):
        nets, noise = tuned_best_of(policy, task, start, n_steps, options.draws)
        accuracies = score(task.network, nets, inputs, labels)[0]
        made[str(n_steps)] = {**summary(accuracies), **noise, "draws": options.draws, "seeds": options.best_of_seeds}
    return made


if __name__ == "__main__":
    main()
