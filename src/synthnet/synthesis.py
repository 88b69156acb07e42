"""Use of a policy: random `.safetensors` in, working `.safetensors` out. Opens no data set and no network connection."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synthnet.bundled import find_policy, inputs_of, known_archs, load_policy, policy_path, policy_record
from synthnet.device import choose_device
from synthnet.engine import NetFile, Network, input_files, match_net, open_net, result_files, write_all
from synthnet.errors import InputError, one_line
from synthnet.files import sha256_of
from synthnet.nets import Arch, WeightState
from synthnet.policy import (
    Policy,
    check_cover,
    choose_steps,
    in_memory,
    read_policy,
    rollout,
    spec_metadata,
    specs_of,
    start_weights,
    synthesize_nets,
)

Start = str | Path | Mapping[str, Tensor] | nn.Module
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


def synthesize(
    start: Start | Sequence[str | Path],
    policy: str | Path | None = None,
    steps: int | str | None = None,
    out: str | Path | None = None,
    sample: int | None = None,
    like: Arch | None = None,
    device: str = "auto",
    strict: bool = False,
    memory: str | None = None,
    spec: Mapping[str, float] | None = None,
) -> Any:
    """Turn randomly initialised weights into working weights, with no data.

    `start`: a file, which gives one `WeightState`; a folder or a list of files, which give a list of these; a state dict, which
    gives another; or a module, which is filled in place and returned. `policy`: a bundled policy's
    name or a policy file; by default the bundled one trained on this architecture. `steps`: synth steps K, by default the
    policy's best; or auto: as many for each net as the policy's critic thinks best. `out`: a file for one input file, a
    folder for several. `sample`: a seed to draw actions with instead of taking their mean. `like`: an architecture of the
    files' kind, only where neither metadata nor names and shapes tell it. `strict`: refuse architectures that the policy was
    never trained on. `memory`: what the process may take, as in 8G: nets one at a time, and edges computed again in tiles
    where their states would not fit; the weights are the same to the bit. `spec`: which variant of its task each net is for, by
    name, where the policy is told; by default as the file's metadata say. Raises: InputError; of bad input, before anything has
    been written.
    """
    if isinstance(start, Mapping | nn.Module):
        if out is not None or sample is not None or memory is not None:
            raise InputError("out, sample and memory are for files; weights in memory are given back")
        if policy is None:
            policy, line = _named(match_net("the start weights", in_memory(start), like, known_archs()), spec)
            print(line, file=sys.stderr)
        return load_policy(policy, choose_device(device)).synthesize(start, steps, spec)
    paths = input_files(start)
    single = isinstance(start, str | Path) and not Path(start).is_dir()
    targets = result_files(paths, out, single) if out is not None else None
    known = known_archs(policy)
    files = [open_net(path, like, known) for path in paths]
    made: dict[int, WeightState] = {}
    for trained, source, mine in _serving(files, policy, device, strict, spec):
        some = [files[i] for i in mine]
        n_steps, specs = choose_steps(trained, steps), specs_of(trained, some, spec)
        if isinstance(n_steps, str) and sample is not None:
            raise InputError(f"--sample draws actions, --steps {n_steps} plans with their means: give one of the two")
        if memory is not None:
            trained.trunk.held_bytes = held_bytes(max(file.net.spec.n_weights for file in some), parse_size(memory))
        finals, taken = synthesize_nets(trained, some, n_steps, sample, alone=memory is not None, specs=specs)
        told = spec_metadata(trained, specs) or [{}] * len(some)
        results = map(_result, some, finals, [source] * len(some), taken, told)
        made |= dict(zip(mine, results, strict=True))
    states = [made[i] for i in range(len(files))]
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
    spec: Mapping[str, float] | None = None,
) -> list[WeightState]:
    """The generated weight-state sequence W0, W1 … WK of one file; arguments as in `synthesize`."""
    file = open_net(weights, like, known_archs(policy))
    ((trained, source, _),) = _serving([file], policy, device, strict=False, spec=spec)
    n_steps, specs = int(choose_steps(trained, steps)), specs_of(trained, [file], spec)
    (start,) = start_weights(trained, [file])
    states = rollout(trained, start[None].to(trained.device), n_steps, file.net, spec=specs)
    (told,) = spec_metadata(trained, specs) or [{}]
    return [file.state, *(_result(file, state[0].cpu(), source, k, told) for k, state in enumerate(states, 1))]


@dataclass(frozen=True)
class Source:
    """The policy file that results are made by."""

    name: str
    sha256: str
    policy: Policy
    inputs: dict  # of nets of all its tasks

    def told(self, net: Network) -> tuple[str | None, dict]:
        """The task that a net is for, None where the policy was trained for several and nothing says which; and what the inputs
        of such nets are."""
        made = self.policy.record
        if "joint" not in (made.get("data") or {}):
            return made.get("task"), self.inputs
        task = self.policy.task_of(net)
        return task, made.get("inputs_of", {}).get(task, {})


def _serving(
    files: Sequence[NetFile], policy: str | Path | None, device: str, strict: bool, spec: Mapping[str, float] | None
) -> list[tuple[Policy, Source, list[int]]]:
    """The policy that was asked for, or the bundled one for each kind of file, checked against each; and which files it is
    for."""
    kinds = [(file.arch, file.net.task) for file in files]
    first = {kind: files[kinds.index(kind)] for kind in dict.fromkeys(kinds)}
    found = {kind: (str(policy), "") if policy is not None else _named(file, spec) for kind, file in first.items()}
    names, serving = {kind: name for kind, (name, _) in found.items()}, []
    for line in dict.fromkeys(line for _, line in found.values() if line):
        print(line, file=sys.stderr)
    for name in dict.fromkeys(names.values()):
        where = policy_path(name)
        trained = read_policy(where, choose_device(device))
        for kind, file in first.items():
            if names[kind] == name:
                check_cover(trained, file, strict)
        mine = [i for i, kind in enumerate(kinds) if names[kind] == name]
        serving.append((trained, Source(where.stem, sha256_of(where), trained, inputs_of(name, trained.record)), mine))
    return serving


def _named(file: NetFile, spec: Mapping[str, float] | None) -> tuple[str, str]:
    """The bundled policy for a file, and a line to say so: what a net's inputs are cannot be read off weights."""
    name, others = find_policy(file.arch, file.net.task, spec is not None)
    more = f"; also trained on this net: {', '.join(others)} (--policy NAME)" if others else ""
    return name, f"policy {name}: {one_line(told_inputs(inputs_of(name, policy_record(name)['record'])))}{more}"


def told_inputs(inputs: dict) -> str:
    """What the inputs of a policy's nets are, in words."""
    text = str(inputs.get("data", "inputs as its task gives them"))
    shift, scale = inputs.get("subtracted"), inputs.get("divided_by")
    if isinstance(shift, float) and isinstance(scale, float):
        return f"{text}, inputs (x − {shift:.4g}) / {scale:.4g}"
    text += ", each less and divided by numbers of its own" if isinstance(shift, list) else ""
    return text + ("; asked both ways round, half the difference counts" if "mirror" in inputs else "")


def _result(file: NetFile, final: Tensor, source: Source, n_steps: int, told: Mapping[str, str]) -> WeightState:
    provenance = {"policy_sha256": source.sha256, "steps": n_steps, "start_sha256": sha256_of(file.path)}
    ours = ("synthnet.task", "synthnet.seed")
    task, inputs = source.told(file.net)
    kept = {key: text for key, text in file.state.metadata.items() if key in ours or not key.startswith("synthnet.")}
    metadata = {
        **({"synthnet.task": task} if task else {}),
        **kept,
        "synthnet.format": "1",
        "synthnet.arch": json.dumps(file.arch.to_dict()),
        "synthnet.policy": json.dumps({"name": source.name, "sha256": source.sha256}),
        "synthnet.steps": str(n_steps),
        "synthnet.inputs": json.dumps({**inputs, "activations": file.arch.activations}),
        "synthnet.provenance": json.dumps(provenance),
        **told,
    }
    return file.replaced(final, metadata)
