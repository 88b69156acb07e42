"""Tasks that a policy has never seen: which classes are "yes" is told, no data are; beside tasks that it trained on.

    python benchmarks/unseen_tasks.py digits-yes=runs/digits-yes/policy.safetensors … -o benchmarks/results/unseen-tasks.json

Every unseen question (200) and as many seen ones, or specs drawn between the ends of ranges and beyond them; `--seeds` nets of
unseen seeds for each, and `--twins` conventionally trained ones. Retention: accuracy as a share of the twins', mean over
questions (as Wang et al. 2025, arXiv 2501.11587, report it), and of the worst. Controls: start weights, and the policy told
another question.
"""

import argparse
import json
from pathlib import Path

import torch

from synthnet.audit.evaluation import interval, split_data
from synthnet.bundled import load_policy
from synthnet.console import table
from synthnet.engine import score
from synthnet.files import write_atomic
from synthnet.policy import synthesize_flat
from synthnet.progress import Bar
from synthnet.tasks import build_task, grow_twins

STEPS = (1, 2, 4)
DRAWS, BEYOND = 48, 0.2  # specs where there are ranges; how far beyond, as a share of a range's width


def accuracies(task, nets: torch.Tensor, spec: torch.Tensor, split: str) -> torch.Tensor:
    """Of nets [net weights], all for one question [1 number]: [net]."""
    inputs, labels = split_data(task, split)
    images, answers = task.varied(inputs, labels, spec)
    return score(task.network, nets, images[0], answers[0])[0]


def asked(task) -> dict[str, torch.Tensor]:
    """The specs [question number] that are measured: those that there are, or draws on ranges, and further ones beyond."""
    if task.variants.unseen is not None:
        return {"unseen": task.variants.unseen, "seen": task.variants.seen[: len(task.variants.unseen)]}
    between = task.draw_spec("test", list(range(DRAWS)))
    if any(isinstance(values, list) for values in task.variants.ranges.values()):
        return {"unseen": between}
    low, high = (torch.tensor([end(values) for values in task.variants.ranges.values()]) for end in (min, max))
    share = torch.linspace(0, BEYOND, DRAWS // 2).double()[:, None] * (high - low)
    return {"unseen": between, "beyond": torch.cat([low - share, high + share])}


def measure(name: str, path: str, n_seeds: int, n_twins: int, split: str) -> dict:
    policy, task, found = load_policy(path), build_task(name), {}
    start = task.draw_start("test", list(range(n_seeds)))
    for kind, questions in asked(task).items():
        rows: dict[str, list] = {key: [] for key in ("start", "twins", "told wrong", *(f"k{k}" for k in STEPS))}
        with Bar(f"{name}, {kind}", len(questions)) as bar:
            for number, question in enumerate(questions.double()):
                spec = question[None]
                twins = grow_twins(task, start[:n_twins], spec=spec.expand(n_twins, -1))
                rows["twins"].append(accuracies(task, twins, spec, split))
                rows["start"].append(accuracies(task, start, spec, split))
                told = {f"k{k}": (k, spec) for k in STEPS} | {"told wrong": (2, questions[number - 1].double()[None])}
                for key, (k, said) in told.items():
                    nets = synthesize_flat(policy, start, k, task.network, said.expand(n_seeds, -1))[:, -1]
                    rows[key].append(accuracies(task, nets, spec, split))
                bar.advance()
        means = {key: torch.stack([each.mean() for each in values]) for key, values in rows.items()}
        found[kind] = {key: {"mean": value.mean().item(), "worst": value.min().item()} for key, value in means.items()}
        for k in STEPS:
            kept = means[f"k{k}"] / means["twins"]
            found[kind][f"k{k}"] |= {
                "retention": kept.mean().item(), "worst_retention": kept.min().item(), "interval": interval(kept)
            }  # fmt: skip
    return {"policy": path, "best_k": policy.record["best_k"], "split": split, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policies", nargs="+", metavar="TASK=POLICY")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--twins", type=int, default=2)
    parser.add_argument("--split", default="test", choices=["val", "test"])
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    results, lines = {}, []
    for each in options.policies:
        name, _, path = each.partition("=")
        results[name] = row = measure(name, path, options.seeds, options.twins, options.split)
        for kind in (kind for kind in ("unseen", "seen", "beyond") if kind in row):
            shown = [
                f"{100 * row[kind][f'k{k}']['retention']:.1f} ({100 * row[kind][f'k{k}']['worst_retention']:.1f})"
                for k in STEPS
            ]
            lines.append([f"{name}, {kind}", f"{100 * row[kind]['twins']['mean']:.2f}", *shown])
    kept = json.loads(Path(options.out).read_text()) if Path(options.out).exists() else {}
    write_atomic(options.out, json.dumps({**kept, **results}, indent=1) + "\n")
    table("share of twins, % (worst question)", ["task", "twins", *(f"K = {k}" for k in STEPS)], lines)


if __name__ == "__main__":
    main()
