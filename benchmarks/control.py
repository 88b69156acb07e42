"""Controllers by a policy that learned from returns alone, beside a search for each net: returns in Gymnasium, steps taken.

    pip install cmaes
    python benchmarks/control.py cartpole=runs/cartpole/policy.safetensors … -o benchmarks/results/control.json

Returns: 256 unseen seeds, 20 episodes each. Searches from the same random nets, in units of each tensor's initial scale:
separable CMA-ES (cmaes), a plain evolution strategy, and the best of as many random nets; until the mean return on starts that
no generation saw reaches the policy's mean, or, where steps are graded, its own on that plant (less the margin below), or to a
limit. Environment steps of a policy are read off its run's log: rollouts x starts x mean length. `shared`: one net, by CMA-ES
with as many environment steps as the policy took (at most SHARED generations), each generation for other plants where they
differ: what a net costs that is nobody's own.

Of a task with variants each net is for one that no training drew; `beyond`: for one up to a fifth of a range's width outside.
A policy that is not told the spec is the control: TASK:LABEL=POLICY of one trained with backbone.spec=0.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from cmaes import SepCMA

from synthnet.audit import summary
from synthnet.bundled import load_policy
from synthnet.engine import Nets
from synthnet.files import write_atomic
from synthnet.nets import aligned_distance, init_scale
from synthnet.policy import synthesize_flat
from synthnet.progress import Bar
from synthnet.runs import records
from synthnet.seeds import generator
from synthnet.tasks import build_task
from synthnet.tasks.plants import STARTS

MARGIN = 0.02  # of the policy's own return, from which a search counts as level
SIGMA, GENERATIONS, SEARCHES, SHARED = 0.5, 200, 16, 1000
PAIRS, RATE = 16, 0.3  # of the evolution strategy: mirrored pairs a generation, and how far it goes
WIDTHS = ([8], [24], [64])
BEYOND = 0.2
GRADED = ("pendulum", "cartpole-targets")


class Evolution:
    """A plain evolution strategy with mirrored draws and ranks for returns (Salimans et al. 2017, arXiv 1703.03864)."""

    def __init__(self, n: int, seed: int):
        self.mean, self.draw, self.population_size = np.zeros(n), np.random.default_rng(seed), 2 * PAIRS
        self.asked: list[np.ndarray] = []

    def ask(self) -> np.ndarray:
        mirrored = len(self.asked) % 2
        self.asked.append(-self.asked[-1] if mirrored else self.draw.standard_normal(len(self.mean)))
        return self.mean + SIGMA * self.asked[-1]

    def tell(self, found: list[tuple[np.ndarray, float]]) -> None:
        ranks = np.argsort(np.argsort([-value for _, value in found])) / (len(found) - 1) - 0.5
        self.mean = self.mean + RATE / SIGMA * np.mean([rank * z for rank, z in zip(ranks, self.asked, strict=True)], 0)
        self.asked = []


class RandomNets:
    """Fresh random nets, of which the best one counts."""

    def __init__(self, task, start: torch.Tensor, seed: int):
        self.task, self.start, self.number, self.population_size = task, start, seed << 20, 16

    def ask(self) -> np.ndarray:
        self.number += 1
        return ((self.task.draw_start("user", [self.number])[0] - self.start) / init_scale(self.task.network.spec)).numpy()

    def tell(self, found: list[tuple[np.ndarray, float]]) -> None:
        """Nothing is learned from it."""


def cma(task, start: torch.Tensor, seed: int) -> SepCMA:
    return SepCMA(mean=np.zeros(len(start)), sigma=SIGMA, seed=seed)


SEARCHERS = {  # how, and from how many starts each candidate is judged
    "CMA-ES": (cma, STARTS),
    "CMA-ES, one start": (cma, 1),
    "evolution strategy": (lambda task, start, seed: Evolution(len(start), seed), STARTS),
    "random nets": (RandomNets, STARTS),
}


def searched(name: str, task, start: torch.Tensor, spec: torch.Tensor | None, wanted: float, seed: int, most: float) -> dict:
    """A search from one net's start weights [weights], for its spec [1 number] if any: evaluations and environment steps until
    it is level, or took `most` steps, and its weights."""
    make, n_starts = SEARCHERS[name]
    scale, search, plant = init_scale(task.network.spec), make(task, start, seed), replace(task.reward, starts=n_starts)
    spent, best, reached = {"evaluations": 0, "steps": 0}, start, -np.inf
    for generation in range(GENERATIONS if most == np.inf else 1 << 20):
        asked = np.stack([search.ask() for _ in range(search.population_size)])
        nets = told(task, start + scale * torch.as_tensor(asked).float(), spec)
        episodes = plant.simulate(nets, generator(seed, "cma", generation))
        returns = episodes.shaped(plant.horizon)
        search.tell([(x, -value) for x, value in zip(asked, returns.tolist(), strict=True)])
        spent["evaluations"] += len(asked)
        spent["steps"] += int(episodes.lengths.sum())
        candidate = start + scale * torch.as_tensor(asked[int(returns.argmax())]).float()
        fresh = task.reward.simulate(told(task, candidate[None], spec), generator(seed, "cma-check", generation), 20)[0]
        if fresh.mean() > reached:
            best, reached = candidate, fresh.mean().item()
        if reached >= wanted or spent["steps"] > most:
            break
    return {**spent, "reached": reached, "level": reached >= wanted, "weights": best}


def shared(task, start: torch.Tensor, specs: torch.Tensor | None, test: torch.Tensor | None, budget: int) -> dict:
    """One net from start weights [weights] for all plants, by CMA-ES: what it earns in Gymnasium on the test specs."""
    scale, search = init_scale(task.network.spec), cma(task, start, 0)
    spent = generation = 0
    while spent < budget and generation < SHARED:
        asked = np.stack([search.ask() for _ in range(search.population_size)])
        nets, few = start + scale * torch.as_tensor(asked).float(), None
        if specs is not None:  # every candidate on the same eight plants
            few = specs[torch.randperm(len(specs), generator=generator(0, "shared", generation))[:STARTS]]
            nets = nets.repeat_interleave(len(few), 0)
            few = few.repeat(len(asked), 1)
        episodes = task.reward.simulate(Nets(task.network, nets, few), generator(0, "shared-draw", generation))
        spent += int(episodes.lengths.sum())
        values = episodes.shaped(task.reward.horizon).view(len(asked), -1).mean(1)
        search.tell([(x, -value) for x, value in zip(asked, values.tolist(), strict=True)])
        generation += 1
    net = start + scale * torch.as_tensor(search.mean).float()
    found = task.judged(net.expand(1 if test is None else len(test), -1), test)[0]
    return {**summary(found), "steps": spent, "generations": generation}


def told(task, nets: torch.Tensor, spec: torch.Tensor | None) -> Nets:
    """Nets [net weights], all for one spec [1 number]."""
    return Nets(task.network, nets, spec if spec is None else spec.expand(len(nets), -1))


def beyond(task, spec: torch.Tensor) -> torch.Tensor:
    """Specs [net number] of which each number that has a range lies outside it, by up to a fifth of its width."""
    spec, draw = spec.clone(), generator(0, "beyond")
    for place, values in enumerate(task.variants.ranges.values()):
        if isinstance(values, tuple):
            share = torch.rand(len(spec), generator=draw, dtype=spec.dtype) * BEYOND * (values[1] - values[0])
            above = torch.rand(len(spec), generator=draw) < 0.5
            spec[:, place] = torch.where(above, values[1] + share, values[0] - share)
    return spec


def paid(policy, task) -> dict:
    """What all stages of a policy cost, read off the logs of their runs."""
    found = {"evaluations": 0, "environment_steps": 0, "seconds": 0.0}
    length = lambda reward: task.reward.horizon if task.name in GRADED else abs(reward)  # noqa: E731  (at most)
    for stage in policy.record["stages"]:
        given = dict(word.split("=", 1) for word in stage["command"] if "=" in word)
        log, starts = list(records(Path(given["run_dir"]) / "metrics.jsonl")), int(given.get("task.starts", STARTS))
        rows = [row for row in log if "evaluations" in row]
        steps = [row["evaluations"] * starts * length(row["reward"]) for row in rows]
        found["evaluations"] += sum(row["evaluations"] for row in rows)
        found["environment_steps"] += int(sum(steps))
        found["seconds"] += max(row.get("elapsed_s", 0) for row in log)
    return found


def measure(name: str, path: str, n_searches: int) -> dict:
    policy, task = load_policy(path), build_task(name)
    seeds = list(range(256))
    start, spec = task.draw_start("test", seeds), task.draw_spec("test", seeds)
    before, _ = task.judged(start, spec)
    found = {"start": summary(before), "best_k": policy.record["best_k"], "steps": {}}
    for k in (1, 2):
        made = synthesize_flat(policy, start, k, task.network, spec)[:, -1]
        found["steps"][str(k)] = summary(task.judged(made, spec)[0])
    made = synthesize_flat(policy, start, policy.record["best_k"], task.network, spec)[:, -1]
    own = task.judged(made, spec)[0]
    if spec is not None:
        far = beyond(task, spec)
        outside = synthesize_flat(policy, start, policy.record["best_k"], task.network, far)[:, -1]
        found["told"], found["beyond"] = policy.reads_spec, summary(task.judged(outside, far)[0])
    found["training"] = paid(policy, task)
    goal = own if task.name in GRADED else own.mean().expand_as(own)  # what a plant allows differs where steps are graded
    wanted = (goal - MARGIN * goal.abs()).tolist()
    one = lambda number: spec if spec is None else spec[number : number + 1]  # noqa: E731
    with Bar(f"searches for {name}", n_searches * len(SEARCHERS)) as bar:
        searches, most, found["peers"] = [], np.inf, {}
        for kind in SEARCHERS:
            made_by = []
            for number in range(n_searches):
                made_by.append(searched(kind, task, start[number], one(number), wanted[number], number, most))
                bar.advance(note=kind)
            steps = [each["steps"] for each in made_by]
            row = {"steps_median": float(np.median(steps)), "level": sum(each["level"] for each in made_by)}
            row["reached"] = summary(torch.tensor([each["reached"] for each in made_by]))
            found["peers"][kind] = row
            if kind == "CMA-ES":
                searches, most = made_by, 3 * max(steps)  # of the others, three times what the slowest took
        level = [kind for kind, row in found["peers"].items() if row["level"] == n_searches] or ["CMA-ES"]
        cheapest = min(level, key=lambda kind: found["peers"][kind]["steps_median"])
    draws = task.draw_spec("zoo", list(range(256)))
    found["shared"] = shared(task, start[0], draws, spec, found["training"]["environment_steps"])
    nets = torch.stack([each.pop("weights") for each in searches])
    if spec is not None:  # what a search reached for each, beside what was synthesised for the same
        few = spec[:n_searches]
        found["cma"] = summary(task.judged(nets, few)[0])
        found["same"] = summary(task.judged(made[:n_searches], few)[0])
    for key in ("evaluations", "steps"):
        found[f"cma_{key}_median"] = float(np.median([each[key] for each in searches]))
    found["cma_level"] = sum(each["level"] for each in searches)
    found["searches"] = searches
    found["cheapest"] = cheapest
    found["break_even_nets"] = found["training"]["environment_steps"] / found["peers"][cheapest]["steps_median"]
    distance = aligned_distance(task.network.alignment, nets)
    found["aligned_distance_to_cma"] = aligned_distance(task.network.alignment, made[:n_searches]) / distance
    found["widths"] = {}
    for hidden in WIDTHS:
        other = build_task(name, hidden=hidden)
        wide_spec = spec if spec is None else spec[:64]
        starts = other.draw_start("test", list(range(64)))
        wide = synthesize_flat(policy, starts, policy.record["best_k"], other.network, wide_spec)[:, -1]
        found["widths"][str(hidden)] = summary(other.judged(wide, wide_spec)[0])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policies", nargs="+", metavar="TASK[:LABEL]=POLICY")
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--searches", type=int, default=SEARCHES)
    options = parser.parse_args()
    results = {}
    for each in options.policies:
        name, _, path = each.partition("=")
        task, _, label = name.partition(":")
        results[label or task] = measure(task, path, options.searches)
    kept = json.loads(Path(options.out).read_text()) if Path(options.out).exists() else {}
    write_atomic(options.out, json.dumps({**kept, **results}, indent=1) + "\n")
    for name, row in results.items():
        steps = ", ".join(f"K = {k}: {r['mean']:.1f} ± {r['sd']:.1f}, worst {r['min']:.1f}" for k, r in row["steps"].items())
        print(f"{name}: start {row['start']['mean']:.1f}; {steps}; trained on {row['training']['environment_steps']:,} steps")
        if "beyond" in row:
            both = f"beyond the ranges {row['beyond']['mean']:.1f}; CMA-ES {row['cma']['mean']:.1f}"
            print(f"  {'told' if row['told'] else 'not told'}; {both}")
        searched = f"CMA-ES {row['cma_steps_median']:,.0f} steps a net ({row['cma_level']} of {options.searches} level)"
        print(f"  {searched}, break-even with the cheapest ({row['cheapest']}) after {row['break_even_nets']:.0f} nets")
        for kind, peer in row["peers"].items():
            reached = f"{peer['level']} of {options.searches} level, {peer['reached']['mean']:.1f} reached"
            print(f"  {kind}: {peer['steps_median']:,.0f} steps a net (median), {reached}")
        one = row["shared"]
        print(f"  one shared net: {one['mean']:.1f} (worst {one['min']:.1f}) after {one['steps']:,} steps")


if __name__ == "__main__":
    main()
