"""A policy at work on opened weight files or weights in memory: which nets it covers, what it begins with, K."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synthnet.engine import NetFile, Network, match_net
from synthnet.errors import InputError
from synthnet.nets import NORM_STARTS, WeightState, looks_trained, match_start, one_sided, read_weights
from synthnet.policy import steps as ways
from synthnet.policy.action import standard_noise
from synthnet.policy.rollout import rollout, with_noise
from synthnet.policy.tokens import reads_units
from synthnet.progress import Bar
from synthnet.seeds import generator
from synthnet.settings import option, options

MOST_STEPS = 64
TOGETHER = 64  # nets that go through a policy at once, at most: more take memory, and on a CPU are no faster


def check_cover(policy: Any, file: NetFile, strict: bool = False) -> None:
    """Refuse a network outside the policy's family, saying how it differs; warn about one it was never trained on, or not for
    the task that it is for (`strict`: refuse that too)."""
    try:
        policy.layout(file.net)
    except InputError as error:
        wrong = policy.archs[0].spec().differences(file.net.spec)
        raise InputError(f"{file.path} is {file.arch}; {error}. Against {policy.archs[0]}: {'; '.join(wrong[:8])}") from error
    told, tasks = [], {policy.record.get("task"), *policy.data_sets, *(name for name, _ in policy.record.get("members", ()))}
    if file.arch not in policy.archs:
        known = ", ".join(map(str, policy.archs))
        told.append(f"{file.path} is {file.arch}, which this policy was never trained on (trained on {known})")
    if None not in (file.net.task, policy.record.get("task")) and file.net.task not in tasks:
        known = ", ".join(sorted(map(str, tasks)))
        told.append(
            f"{file.path} is a net for task {file.net.task}, which this policy was never trained for (trained for {known})"
        )
    for message in told:
        if strict:
            raise InputError(f"{message}; refused, as --strict asks")
        warnings.warn(message, stacklevel=5)


def choose_steps(policy: Any, steps: int | str | None) -> int | str:
    """K: as asked (or a way of `policy/steps/` by name, where the policy's critic decides for each net), else the policy's
    recorded best K on val.

    Raises: InputError below 1, or for a name without a critic; warns above k_max.
    """
    if steps is None:
        return int(policy.record.get("best_k", 1))
    if steps in options(ways):
        if getattr(option(ways, steps, "steps"), "NEEDS_CRITIC", False) and policy.critic is None:
            raise InputError(f"--steps {steps} needs an early-stop critic: train one with synthnet critic, or give K")
        return steps
    try:
        steps = int(steps)
    except ValueError:
        raise InputError(f"steps must be a whole number or {' or '.join(options(ways))}, got {steps!r}") from None
    if not 1 <= steps <= MOST_STEPS:
        raise InputError(f"steps must lie in 1..{MOST_STEPS}, got {steps}")
    if steps > policy.config.k_max:
        warnings.warn(
            f"steps={steps} is above the policy's k_max={policy.config.k_max}; it was never trained on so many", stacklevel=3
        )
    return steps


def start_weights(policy: Any, files: Sequence[NetFile]) -> list[Tensor]:
    """What the policy begins with for each file [weights]: its weights, at the root mean square of start weights.

    Raises: InputError for weights that no step can mend: constant, denormal, or with units that nothing tells apart. Warns
    where weights were scaled, and where they look trained.
    """
    starts: list[Tensor] = []
    scaled: dict[Path, dict[str, float]] = {}
    trained: dict[Path, list[str]] = {}
    sided: dict[Path, list[str]] = {}
    by_units = reads_units(policy.config.tokens)
    for file in files:
        spec, own = file.net.spec, file.flat
        try:
            flat, factors = match_start(spec, own)
            groups = file.net.symmetry.told_apart(flat) if by_units else {}
            for group, n_apart in groups.items():
                if 2 * n_apart <= (size := file.net.symmetry.groups[group]) and size > 1:
                    raise InputError(
                        f"of the {size} units of group {group}, only {n_apart} differ: draw start weights at random"
                    )
        except InputError as error:
            raise InputError(f"{file.path}: {error}") from error
        starts.append(flat)
        scaled |= {file.path: factors} if factors else {}
        sided |= {file.path: names} if (names := one_sided(spec, own)) else {}
        trained |= {file.path: names} if (names := looks_trained(spec, own)) else {}
    if scaled:
        factors = next(iter(scaled.values()))
        norms = lambda name: name.rpartition(".")[2] in NORM_STARTS and factors[name] in (0.0, 1.0)  # noqa: E731
        by = lambda name: f"set to {factors[name]:g}" if norms(name) else f"x {factors[name]:.3g}"  # noqa: E731
        shown = ", ".join(f"{name} {by(name)}" for name in list(factors)[:4])
        more = ", …" if len(factors) > 4 else ""
        warnings.warn(f"{_these(scaled)}: scaled to the root mean square of start weights ({shown}{more})", stacklevel=3)
    if sided:
        names = ", ".join(next(iter(sided.values()))[:4])
        warnings.warn(f"{_these(sided)}: {names} do not lie around 0, as every start that policies were shown", stacklevel=3)
    if trained:
        warnings.warn(
            f"{_these(trained)}: looks trained; the policy was shown random weights, and may make it worse", stacklevel=3
        )
    return starts


def _these(files: dict) -> str:
    first = next(iter(files))
    return f"{first} and {len(files) - 1} more" if len(files) > 1 else str(first)


@torch.no_grad()
def synthesize_nets(
    policy: Any,
    files: Sequence[NetFile],
    n_steps: int | str,
    sample: int | None = None,
    alone: bool = False,
    specs: Tensor | None = None,
) -> tuple[list[Tensor], list[int]]:
    """WK [weights] and K for each file, in order. Files of one architecture and task go through the policy together, in as few
    equal parts as TOGETHER allows, or each `alone`. sample: a seed of noise, which is each file's own. specs [file number]:
    which variant of its task each net is for, where the policy is told."""
    starts = start_weights(policy, files)
    results: dict[int, Tensor] = {}
    taken: dict[int, int] = {}
    kinds = [(file.arch, file.net.task) for file in files]
    of_kinds = [torch.tensor([i for i, kind in enumerate(kinds) if kind == one]) for one in dict.fromkeys(kinds)]
    together = [part.tolist() for each in of_kinds for part in each.tensor_split(-(-len(each) // TOGETHER))]
    with Bar("synthesising", len(files)) if alone or len(files) > TOGETHER else nullcontext() as bar:
        for some in [[i] for i in range(len(files))] if alone else together:
            start, net = torch.stack([starts[i] for i in some]).to(policy.device), files[some[0]].net
            if isinstance(n_steps, str):
                final, counts = option(ways, n_steps, "steps").synthesize(policy, start, net)
            else:
                told = None if specs is None else specs[some].to(policy.device)
                act = None if sample is None else with_noise(_noise(policy, net, some, sample))
                final, counts = rollout(policy, start, n_steps, net, act, spec=told)[-1], torch.full((len(start),), n_steps)
            results |= dict(zip(some, final.cpu(), strict=True))
            taken |= dict(zip(some, counts.tolist(), strict=True))
            if bar:
                bar.advance(len(some))
    return [results[i] for i in range(len(files))], [taken[i] for i in range(len(files))]


def _noise(policy: Any, net: Network, numbers: Sequence[int], seed: int) -> Callable[[int], Tensor]:
    """The noise of a step [net dim] of the files of these numbers, whichever go through the policy with them."""
    size = (1, policy.code_dim or net.spec.n_weights)
    one = lambda step, number: standard_noise(size, generator(seed, "sample", step, number), policy.device)  # noqa: E731
    return lambda step: torch.cat([one(step, number) for number in numbers])


def specs_of(policy: Any, files: Sequence[NetFile], spec: Mapping[str, float] | None) -> Tensor | None:
    """Which variant of its task each file's net is for [file number]: as asked, or as its metadata say; None where the policy
    is not told. Raises: InputError where it is and nothing says, or where a spec was asked for of a policy that reads none."""
    if not policy.reads_spec:
        if spec:
            raise InputError("this policy is told no spec: every net of its task is for the same")
        return None
    return torch.cat([policy.variants.of_file(file.path, file.state.metadata, spec) for file in files])


def spec_metadata(policy: Any, specs: Tensor | None) -> list[dict[str, str]]:
    """What the metadata of outputs say of the specs [file number] that they were made for; nothing where there are none."""
    return [] if specs is None else [{"synthnet.spec": policy.variants.told(spec)} for spec in specs]


def in_memory(start: Mapping[str, Tensor] | nn.Module) -> WeightState:
    """Weights of a module or a state dict, as they would lie in a file. Raises: InputError for anything else."""
    tensors = start.state_dict() if isinstance(start, nn.Module) else start
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise InputError(f"start weights are a path, a state dict of tensors or an nn.Module, got {type(start).__name__}")
    return WeightState({name: value.detach().cpu() for name, value in tensors.items()})


def serve(
    policy: Any,
    start: str | Path | Mapping[str, Tensor] | nn.Module,
    steps: int | str | None,
    spec: Mapping[str, float] | None = None,
) -> Any:
    """`Policy.synthesize`: what came in, with other weights; a file gives its state, a module is filled in place."""
    named = isinstance(start, str | Path)
    state = read_weights(start) if named else in_memory(start)
    file = match_net(start if named else "the start weights", state, None, policy.archs)
    check_cover(policy, file)
    specs = specs_of(policy, [file], spec)
    (final,), _ = synthesize_nets(policy, [file], choose_steps(policy, steps), specs=specs)
    if not torch.isfinite(final).all():
        raise InputError(f"{file.path}: synthesis gave NaN or infinite weights")
    (told,) = spec_metadata(policy, specs) or [{}]
    made = file.replaced(final, {**file.state.metadata, **told})
    if isinstance(start, nn.Module):
        start.load_state_dict(made.tensors)
        return start
    return made if named else dict(made.tensors)
