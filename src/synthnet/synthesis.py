"""Use of a policy: random `.safetensors` in, working `.safetensors` out. Opens no data set and no network connection."""

import json
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from synthnet.bundled import described, find_policy, policies, policy_path, policy_record
from synthnet.device import choose_device
from synthnet.engine import NetFile, input_files, open_net, result_files, write_all
from synthnet.errors import InputError, one_line
from synthnet.files import sha256_of
from synthnet.nets import Arch, WeightState, looks_trained, match_start
from synthnet.policy import Policy, read_policy, reads_units, rollout, standard_noise, with_noise
from synthnet.policy import steps as ways
from synthnet.seeds import generator
from synthnet.settings import option, options


def check_cover(policy: Policy, file: NetFile, strict: bool = False) -> None:
    """Refuse a network outside the policy's family, saying how it differs; warn about one it was never trained on (`strict`:
    refuse that too)."""
    try:
        policy.layout(file.net)
    except InputError as error:
        wrong = policy.archs[0].spec().differences(file.net.spec)
        raise InputError(f"{file.path} is {file.arch}; {error}. Against {policy.archs[0]}: {'; '.join(wrong[:8])}") from error
    if file.arch not in policy.archs:
        known = ", ".join(map(str, policy.archs))
        message = f"{file.path} is {file.arch}, which this policy was never trained on (trained on {known})"
        if strict:
            raise InputError(f"{message}; refused, as --strict asks")
        warnings.warn(message, stacklevel=4)


FIXED_BYTES, BYTES_PER_WEIGHT = 1 << 29, 64  # torch itself; a weight's values and index tables on their way through a policy
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes from a size as in 500M, 8G or 8GiB. Raises: InputError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found:
        raise InputError(f"a memory budget is a number with K, M, G or T, as in 8G; got {text!r}")
    return int(float(found[1]) * UNITS[found[2].upper()])


def held_bytes(n_weights: int, budget: int) -> int:
    """What is left of a memory budget for the states of edges. Raises: InputError where not even the weights fit."""
    needed = FIXED_BYTES + BYTES_PER_WEIGHT * n_weights
    if needed > budget:
        raise InputError(
            f"{n_weights:,} weights need at least {needed / (1 << 30):.1f}G, the budget is {budget / (1 << 30):.1f}G"
        )
    return budget - needed


def choose_steps(policy: Policy, steps: int | str | None) -> int | str:
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
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}")
    if steps > policy.config.k_max:
        warnings.warn(
            f"steps={steps} is above the policy's k_max={policy.config.k_max}; it was never trained on so many", stacklevel=3
        )
    return steps


def start_weights(policy: Policy, files: Sequence[NetFile]) -> list[Tensor]:
    """What the policy begins with for each file [weights]: its weights, at the root mean square of start weights.

    Raises: InputError for weights that no step can mend: constant, denormal, or with units that nothing tells apart. Warns
    where weights were scaled, and where they look trained.
    """
    starts: list[Tensor] = []
    scaled: dict[Path, dict[str, float]] = {}
    trained: dict[Path, list[str]] = {}
    for file in files:
        spec, own = file.net.spec, file.flat
        try:
            flat, factors = match_start(spec, own)
            groups = file.net.symmetry.told_apart(flat) if reads_units(policy.config.tokens) else {}
            for group, n_apart in groups.items():
                if 2 * n_apart <= (size := file.net.symmetry.groups[group]) and size > 1:
                    raise InputError(
                        f"of the {size} units of group {group}, only {n_apart} differ: draw start weights at random"
                    )
        except InputError as error:
            raise InputError(f"{file.path}: {error}") from error
        starts.append(flat)
        scaled |= {file.path: factors} if factors else {}
        trained |= {file.path: names} if (names := looks_trained(spec, own)) else {}
    if scaled:
        factors = next(iter(scaled.values()))
        shown = ", ".join(f"{name} x {factor:.3g}" for name, factor in list(factors.items())[:4])
        more = ", …" if len(factors) > 4 else ""
        warnings.warn(f"{_these(scaled)}: scaled to the root mean square of start weights ({shown}{more})", stacklevel=3)
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
    policy: Policy, files: Sequence[NetFile], n_steps: int | str, sample: int | None = None, alone: bool = False
) -> tuple[list[Tensor], list[int]]:
    """WK [weights] and K for each file, in order. Files of one architecture and task go through the policy together, or
    each `alone`."""
    starts = start_weights(policy, files)
    results: dict[int, Tensor] = {}
    taken: dict[int, int] = {}
    kinds = [(file.arch, file.net.task) for file in files]
    together = [[i for i, kind in enumerate(kinds) if kind == one] for one in dict.fromkeys(kinds)]
    for members in [[i] for i in range(len(files))] if alone else together:
        start = torch.stack([starts[i] for i in members]).to(policy.device)
        shape = (len(start), policy.code_dim or start.shape[1])
        noise = lambda step, shape=shape: standard_noise(shape, generator(sample or 0, "sample", step), policy.device)  # noqa: E731
        if isinstance(n_steps, str):
            final, counts = option(ways, n_steps, "steps").synthesize(policy, start, files[members[0]].net)
        else:
            final, counts = (
                rollout(policy, start, n_steps, files[members[0]].net, None if sample is None else with_noise(noise))[-1],
                torch.full((len(start),), n_steps),
            )
        results |= dict(zip(members, final.cpu(), strict=True))
        taken |= dict(zip(members, counts.tolist(), strict=True))
    return [results[i] for i in range(len(files))], [taken[i] for i in range(len(files))]


def synthesize(
    weights: str | Path | Sequence[str | Path],
    policy: str | Path | None = None,
    steps: int | str | None = None,
    out: str | Path | None = None,
    sample: int | None = None,
    like: Arch | None = None,
    device: str = "auto",
    strict: bool = False,
    memory: str | None = None,
) -> WeightState | list[WeightState]:
    """Turn files of randomly initialised weights into working weights, with no data.

    `weights`: one file, a folder, or a list of files; one file gives one state, else a list. `policy`: a bundled policy's
    name or a policy file; by default the bundled one trained on this architecture. `steps`: synth steps K, by default the
    policy's best; or auto: as many for each net as the policy's critic thinks best. `out`: a file for one input file, a
    folder for several. `sample`: a seed to draw actions with instead of taking their mean. `like`: an architecture of the
    files' kind, only where neither metadata nor names and shapes tell it. `strict`: refuse architectures that the policy was
    never trained on. `memory`: what the process may take, as in 8G: nets one at a time, and edges computed again in tiles
    where their states would not fit; the weights are the same to the bit. Raises: InputError; then nothing has been written.
    """
    paths = input_files(weights)
    single = isinstance(weights, str | Path) and not Path(weights).is_dir()
    targets = result_files(paths, out, single) if out is not None else None
    known = known_archs(policy)
    files = [open_net(path, like, known) for path in paths]
    trained, source = _serving(files, policy, device, strict)
    n_steps = choose_steps(trained, steps)
    if isinstance(n_steps, str) and sample is not None:
        raise InputError(f"--sample draws actions, --steps {n_steps} plans with their means: give one of the two")
    if memory is not None:
        trained.trunk.held_bytes = held_bytes(max(file.net.spec.n_weights for file in files), parse_size(memory))
    finals, taken = synthesize_nets(trained, files, n_steps, sample, alone=memory is not None)
    states = [_result(file, final, source, k) for file, final, k in zip(files, finals, taken, strict=True)]
    for file, state in zip(files, states, strict=True):
        if not all(torch.isfinite(value).all() for value in state.tensors.values() if value.is_floating_point()):
            raise InputError(f"{file.path}: synthesis gave NaN or infinite weights; nothing was written")
    if targets is not None:
        write_all(targets, states, single)
    return states[0] if single else states


@torch.no_grad()
def synthesize_sequence(
    weights: str | Path,
    policy: str | Path | None = None,
    steps: int | None = None,
    like: Arch | None = None,
    device: str = "auto",
) -> list[WeightState]:
    """The generated weight-state sequence W0, W1 … WK of one file; arguments as in `synthesize`."""
    file = open_net(weights, like, known_archs(policy))
    trained, source = _serving([file], policy, device, strict=False)
    n_steps = int(choose_steps(trained, steps))
    (start,) = start_weights(trained, [file])
    states = rollout(trained, start[None].to(trained.device), n_steps, file.net)
    return [file.state, *(_result(file, state[0].cpu(), source, k) for k, state in enumerate(states, 1))]


def known_archs(policy: str | Path | None) -> list[Arch]:
    """The architectures that a file may be of: those the policy was trained on; of no policy, of all that ship."""
    records = [policy_record(policy)] if policy is not None else [policy_record(name) for name in policies()]
    return [Arch.from_dict(arch) for record in records for arch in record.get("archs", ())]


@dataclass(frozen=True)
class Source:
    """The policy file that results are made by."""

    name: str
    sha256: str
    inputs: dict


def _serving(files: Sequence[NetFile], policy: str | Path | None, device: str, strict: bool) -> tuple[Policy, Source]:
    """The policy that was asked for, or the bundled one for these files, checked against each architecture."""
    name, others = (str(policy), []) if policy is not None else find_policy(files[0].arch, files[0].net.task)
    where = policy_path(name)
    trained = read_policy(where, choose_device(device))
    for file in {(file.arch, file.net.task): file for file in reversed(files)}.values():  # one word for each kind
        check_cover(trained, file, strict)
    inputs = described(name)["inputs"]
    if policy is None:
        said = f"policy {name}: {one_line(told_inputs(inputs))}"
        print(said + (f"; also trained on this net: {', '.join(others)} (--policy NAME)" if others else ""), file=sys.stderr)
    return trained, Source(where.stem, sha256_of(where), inputs)


def told_inputs(inputs: dict) -> str:
    """What the inputs of a policy's nets are, in words."""
    text = str(inputs.get("data", "inputs as its task gives them"))
    shift, scale = inputs.get("subtracted"), inputs.get("divided_by")
    if isinstance(shift, float) and isinstance(scale, float):
        return f"{text}, inputs (x − {shift:.4g}) / {scale:.4g}"
    return text + (", each feature standardised on train" if isinstance(shift, list) else "")


def _result(file: NetFile, final: Tensor, source: Source, n_steps: int) -> WeightState:
    provenance = {"policy_sha256": source.sha256, "steps": n_steps, "start_sha256": sha256_of(file.path)}
    ours = ("synthnet.task", "synthnet.seed")
    kept = {key: text for key, text in file.state.metadata.items() if key in ours or not key.startswith("synthnet.")}
    metadata = {
        **kept,
        "synthnet.format": "1",
        "synthnet.arch": json.dumps(file.arch.to_dict()),
        "synthnet.policy": json.dumps({"name": source.name, "sha256": source.sha256}),
        "synthnet.steps": str(n_steps),
        "synthnet.inputs": json.dumps({**source.inputs, "activations": file.arch.activations}),
        "synthnet.provenance": json.dumps(provenance),
    }
    return file.replaced(final, metadata)
