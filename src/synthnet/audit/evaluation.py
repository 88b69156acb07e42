"""Evaluation: the one module that reads the test split. Files against a task's data; policies over fresh seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthnet.bundled import known_archs
from synthnet.engine import NetFile, input_files, open_net, predictions
from synthnet.errors import InputError
from synthnet.nets import Arch, aligned_distance, identity_report, own_twin_rank
from synthnet.policy import Policy, synthesize_flat
from synthnet.seeds import generator
from synthnet.tasks import (
    Task,
    build_task,
    check_same_data,
    data_settings,
    grow_strong,
    grow_twins,
    is_gym,
    is_own,
    judge,
    recorded_task,
    task_names,
)

BOOTSTRAP_DRAWS = 2000


def split_data(task: Task, split: str) -> tuple[Tensor, Tensor]:
    """Inputs and labels of any split, the test split included."""
    return task.test_data() if split == "test" else task.examples(split)


def task_of(arch: Arch, asked: str | None = None, recorded: str | None = None, **settings: Any) -> Task:
    """The task a network belongs to: the one that a person asked for, else the one that a file records (of a family, the task
    it is a family of), else the built-in task of this very architecture, else the smallest with its kind, inputs and outputs,
    where all of those have the same data.

    Raises: InputError when none fits, when several with different data do, when the named one has other networks, or where
    a file names code (`recorded_task`).
    """
    name = asked or recorded_task(recorded)
    if name is not None and is_own(name):
        task = build_task(name, **settings)
        if arch.kind != task.arch.kind and arch.spec().differences(task.arch.spec()):
            raise InputError(f"{arch} is not the net of {name}, which is {task.arch}")
        return task
    fits = [task for name in task_names() if _single(task := build_task(name)) and task.arch.kind == arch.kind]
    if name is not None:
        if is_gym(name):
            task = build_task(name)
            if arch.kind != task.arch.kind:
                raise InputError(f"{arch} is not a network of task {name}, which has {task.arch}")
            return task.with_arch(arch)
        if name not in task_names():
            raise InputError(f"{arch} is a net of task {name}, which is none of ours: pass --task FILE.py:{name}")
        task = build_task(name, **settings)
        task = task if _single(task) else task.members[0]
        if task.name not in [fit.name for fit in fits]:
            raise InputError(f"{arch} is not a network of task {name}, which has {task.arch}")
        return task.with_arch(arch)
    fits = [task for task in fits if not task.named_only]
    fits.sort(key=lambda task: (task.arch != arch, task.network.spec.n_weights))
    if len({task.data_set for task in fits}) != 1:
        _, n_inputs, n_classes = arch.kind
        names = [task.name for task in fits]
        raise InputError(f"no single task has {n_inputs} inputs and {n_classes} outputs ({names or 'none'}); pass --task NAME")
    return build_task(fits[0].name, **settings).with_arch(arch)


def _single(task: Task) -> bool:
    """Whether a task is neither a family nor a joint one."""
    return not task.family and not task.joint


def task_of_policy(policy: Policy, split_seed: int | None = None) -> Task:
    """The task that a policy was trained on, with its own data, or another split of it."""
    settings = data_settings(policy.record.get("data"))
    if split_seed is not None:
        settings["split_seed"] = split_seed
    return build_task(recorded_task(policy.record["task"]) or "", **settings)


def evaluate(
    files: str | Path | Sequence[str | Path],
    split: str = "test",
    task: str | None = None,
    spec: Mapping[str, float] | None = None,
    **settings: Any,
) -> list[dict]:
    """Metric and loss of weight files: [{file, task, split, n, metric, value, loss}]; accuracy in [0, 1]. spec: which variant
    of its task each is for, by name; by default as its metadata say."""
    like = build_task(task, **settings).arch if task else None
    known = known_archs()
    opened = [open_net(path, like, known) for path in input_files(files)]
    results: list[dict] = []
    row: dict[str, Any]
    for file in opened:
        owner = task_of(file.arch, task, file.state.metadata.get("synthnet.task"), **settings)
        told = spec_for(file, owner, spec)
        if owner.data is None:
            value, n_draws = owner.judged(file.flat[None], told)
            row = {"file": str(file.path), "task": owner.name, "split": None, "n": n_draws, "metric": owner.objective.name}
            results.append({**row, "value": value.item()})
            continue
        inputs, labels = split_data(owner, split)
        values, losses = (part.item() for part in judge(owner, file.flat[None], inputs, labels, told))
        row = {"file": str(file.path), "task": owner.name, "split": split, "n": len(labels)}
        row["metric"] = owner.objective.name
        own = {"accuracy": values} if owner.objective.name == "accuracy" else {}
        results.append({**row, "value": values, **own, "loss": losses})
    return results


def spec_for(file: NetFile, task: Task, told: Mapping[str, float] | None) -> Tensor | None:
    """Which variant of its task a file's net is for [1 number]. Raises: InputError where the task has none, or none is said."""
    if task.variants is None:
        if told:
            raise InputError(f"task {task.name} has no variants, and takes no spec")
        return None
    return task.variants.of_file(file.path, file.state.metadata, told)


def summary(values: Tensor) -> dict:
    """Mean, standard deviation and distribution of one figure over seeds."""
    values = values.double().cpu()
    quantiles = torch.quantile(values, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)).tolist()
    return {
        "mean": values.mean().item(),
        "sd": values.std().item() if len(values) > 1 else 0.0,
        "min": values.min().item(),
        "max": values.max().item(),
        "quantiles_5_25_50_75_95": quantiles,
    }


def interval(values: Tensor, seed: int = 0) -> list[float]:
    """Bootstrap 95 % interval of a mean over the last axis [unit]."""
    draw = generator(seed, "bootstrap")
    picks = torch.randint(len(values), (BOOTSTRAP_DRAWS, len(values)), generator=draw)
    means = values.double().cpu()[picks].mean(-1)
    return torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()


def evaluate_policy(
    policy: Policy,
    task: Task,
    n_seeds: int = 256,
    steps: Sequence[int] = (1, 2, 4),
    split: str = "test",
    twins: Tensor | None = None,
    strong: bool = False,
) -> dict:
    """A policy over fresh seeds beside its controls on the same seeds: start weights and SGD twins (grown here unless given,
    [seed weights]), with `strong` strong twins too; the metric for each K, paired differences with bootstrap intervals over
    seeds and over examples, and the identity measures."""
    check_same_data(policy.record.get("data"), task, "this policy")
    if policy.reads_spec and policy.variants and task.variants != policy.variants:
        raise InputError(
            f"this policy is told {policy.variants.shown}; task {task.name} has "
            f"{task.variants.shown if task.variants else 'no spec'} (--set differ=…)"
        )
    if task.data is None:
        return _evaluate_rewards(policy, task, n_seeds, steps)
    net, device, objective = task.network, policy.device, task.objective
    inputs, labels = (part.to(device) for part in split_data(task, split))
    seeds = list(range(n_seeds))
    start, spec = task.draw_start("test", seeds).to(device), task.draw_spec("test", seeds)
    twins = grow_twins(task, start, spec=spec) if twins is None else twins.to(device)
    inputs, labels = task.varied(inputs, labels, spec)
    right = lambda predicted: objective.each(predicted, labels).mean(1)  # noqa: E731
    predict = lambda nets: _predictions(task, nets, inputs)  # noqa: E731
    twin_probs = predict(twins)
    references = {"sgd": objective.each(twin_probs, labels)}
    report: dict[str, Any] = {
        "task": task.name,
        "metric": objective.name,
        "split": split,
        "split_seed": task.split_seed,
        "seeds": n_seeds,
        "n_images": labels.shape[spec is not None],
        "start": summary(right(predict(start))),
        "sgd_twins": summary(references["sgd"].mean(1)),
        "steps": {},
    }
    if strong:
        nets, found = grow_strong(task, start, spec=spec)
        references["strong"] = objective.each(predict(nets), labels)
        report["strong_twins"] = {**summary(references["strong"].mean(1)), "search": asdict(found)}
    for n_steps in steps:
        outputs = synthesize_flat(policy, start, n_steps, net, spec)[:, -1]
        probs = predict(outputs)
        each = objective.each(probs, labels)
        row: dict[str, Any] = {"accuracy": summary(each.mean(1))}
        report["steps"][str(n_steps)] = row
        for name, reference in references.items():
            gain = each - reference
            row |= {
                f"share_of_{name}": (each.mean() / reference.mean()).item(),
                f"minus_{name}": gain.mean().item(),
                f"minus_{name}_interval_over_seeds": interval(gain.mean(1)),
                f"minus_{name}_interval_over_images": interval(gain.mean(0)),
            }
        classes = objective.kind == "classes"
        if task.variant is None:
            row["identity"] = identity_report(net.alignment, outputs, twins, probs, twin_probs, right, classes)
        else:  # what nets of different variants predict is not compared
            ratio = aligned_distance(net.alignment, outputs) / aligned_distance(net.alignment, twins)
            row["identity"] = {"aligned_distance": {"ratio": ratio}}
        row["own_twin"] = own_twin_rank(start, outputs, twins)
    return report


def _predictions(task: Task, nets: Tensor, inputs: Tensor) -> Tensor:
    """What nets [net weights] say of examples [example …], or of those of each net where the task has variants."""
    if task.variant is None:
        return predictions(task.network, nets, inputs)
    return torch.cat([predictions(task.network, nets[i : i + 1], inputs[i]) for i in range(len(nets))])


def _evaluate_rewards(policy: Policy, task: Task, n_seeds: int, steps: Sequence[int]) -> dict:
    """`evaluate_policy` of a task of rewards alone: mean rewards over draws of fixed seeds, beside start weights; nets of
    different seeds are compared with those."""
    seeds = list(range(n_seeds))
    start, spec = task.draw_start("test", seeds).to(policy.device), task.draw_spec("test", seeds)
    before, n_draws = task.judged(start, spec)
    told = {"task": task.name, "metric": task.objective.name, "split": None, "seeds": n_seeds, "n_images": n_draws}
    report: dict[str, Any] = {**told, "start": summary(before), "steps": {}}
    apart = aligned_distance(task.network.alignment, start)
    for n_steps in steps:
        outputs = synthesize_flat(policy, start, n_steps, task.network, spec)[:, -1]
        ratio = aligned_distance(task.network.alignment, outputs) / apart
        row = {"accuracy": summary(task.judged(outputs, spec)[0]), "identity": {"aligned_distance": {"ratio": ratio}}}
        report["steps"][str(n_steps)] = row
    return report
