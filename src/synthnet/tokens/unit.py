"""Unit tokens: one token per hidden unit with all its weights along fixed axes, and edge blocks between hidden groups.

A policy over them is exactly equivariant to permutations of hidden units: the token axis carries no position. Tensors
without a hidden axis (the output bias) share one extra token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log, prod

import torch

from synthnet.errors import InputError
from synthnet.symmetry import Symmetry
from synthnet.tokens import EdgeBlock, TokenLayout
from synthnet.weights import WeightSpec

N_DESCRIPTORS = 4


@dataclass
class Config:
    name: str = "unit"


def build(config: Config, spec: WeightSpec, symmetry: Symmetry | None, vocabulary: Mapping[str, int] | None) -> TokenLayout:
    if symmetry is None:
        raise InputError("unit tokens need a traced architecture; use tokens=chunk for a file without one")
    flat = spec.unflatten(torch.arange(spec.n_weights))
    parts = {name: _part(symmetry.axes[name], flat[name].shape) for name in flat}
    vocabulary = dict(vocabulary) if vocabulary else _vocabulary(parts)
    if missing := sorted({key for key, _, _ in parts.values()} - set(vocabulary)):
        raise InputError(f"the policy's family does not cover this network: it has never seen {', '.join(missing)}")
    starts, width = _columns(vocabulary)
    tokens, rows = _token_rows(symmetry)
    unit_index = torch.full((tokens, width), spec.n_weights)
    column_of, token_of = torch.empty(spec.n_weights, dtype=torch.long), torch.empty(spec.n_weights, dtype=torch.long)
    columns = {key: number for number, key in enumerate(vocabulary)}
    edges, edge_descriptors, n_action = [], [], tokens
    for name, index in flat.items():
        key, axis, size = parts[name]
        column_of[index.reshape(-1)] = columns[key]
        if key == "edge":
            out, into = (rows[group] for group in symmetry.axes[name])
            edges.append(EdgeBlock(out, into, index.reshape(*index.shape[:2], -1)))
            edge_descriptors.append(_descriptor(symmetry, symmetry.axes[name][0]))
            token_of[index] = n_action + torch.arange(index.shape[0])[:, None]
            n_action += index.shape[0]
            continue
        group = symmetry.axes[name][axis] if axis is not None else None
        block = index.movedim(axis, 0).reshape(-1, size) if axis is not None else index.reshape(1, size)
        place = rows[group]
        if (unit_index[place, starts[key] : starts[key] + size] != spec.n_weights).any():
            raise InputError(f"{name} and another tensor of the same kind ({key}) belong to the same units; use tokens=chunk")
        unit_index[place, starts[key] : starts[key] + size] = block
        token_of[block] = torch.arange(place.start, place.stop)[:, None]
    descriptors = [_descriptor(symmetry, group) for group, place in rows.items() for _ in range(place.start, place.stop)]
    return TokenLayout(
        unit_index,
        torch.tensor(descriptors),
        tuple(edges),
        torch.tensor(edge_descriptors).reshape(-1, N_DESCRIPTORS),
        token_of,
        n_action,
        column_of,
        vocabulary,
    )


def _part(axes: tuple[str | None, ...], shape: tuple[int, ...]) -> tuple[str, int | None, int]:
    """Which kind of column a tensor fills: (key, the hidden axis, features per unit)."""
    hidden = [axis for axis, group in enumerate(axes) if group is not None]
    if len(hidden) > 1:
        return "edge", None, 1
    rest = [n for axis, n in enumerate(shape) if axis not in hidden]
    side = ("outgoing" if hidden[0] else "incoming") if hidden else "fixed"
    kind = "bias" if len(shape) == 1 else "weight"
    return f"{side}-{kind}-{'x'.join(map(str, rest)) or '1'}", hidden[0] if hidden else None, prod(rest)


def _vocabulary(parts: Mapping[str, tuple[str, int | None, int]]) -> dict[str, int]:
    return {key: size for key, _, size in parts.values()}


def _columns(vocabulary: Mapping[str, int]) -> tuple[dict[str, int], int]:
    starts, width = {}, 0
    for key, size in vocabulary.items():
        if key != "edge":
            starts[key], width = width, width + size
    return starts, width


def _token_rows(symmetry: Symmetry) -> tuple[int, dict[str | None, slice]]:
    """The rows of each unit group, then one row for what has no hidden axis."""
    rows, start = {}, 0
    for group, size in symmetry.groups.items():
        rows[group] = slice(start, start + size)
        start += size
    rows[None] = slice(start, start + 1)
    return start + 1, rows


def _descriptor(symmetry: Symmetry, group: str | None) -> list[float]:
    """Relative depth from both ends, width on a log scale, and a flag for the fixed token."""
    if group is None:
        return [1.0, 0.0, 0.0, 1.0]
    depth = (list(symmetry.groups).index(group) + 1) / (len(symmetry.groups) + 1)
    return [depth, 1 - depth, log(symmetry.groups[group]) / 5, 0.0]
