"""Unit tokens: one token per hidden unit with all its weights along fixed axes, and edge blocks between hidden groups.

A policy over them is exactly equivariant to permutations of hidden units: the token axis carries no position. Tensors
without a hidden axis (the output bias) share one extra token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log, prod

import torch

from synthnet.errors import InputError
from synthnet.symmetry import Piece, Symmetry
from synthnet.tokens import EdgeBlock, TokenLayout
from synthnet.weights import WeightSpec

N_DESCRIPTORS = 4


@dataclass
class Config:
    name: str = "unit"


def build(config: Config, spec: WeightSpec, symmetry: Symmetry | None, vocabulary: Mapping[str, int] | None) -> TokenLayout:
    if symmetry is None:
        raise InputError("unit tokens need a traced architecture; use tokens=chunk for a file without one")
    vectors = {tensor.name for tensor in spec.floats if len(tensor.shape) == 1}
    keys = [_key(piece, piece.tensor in vectors) for piece in symmetry.pieces]
    vocabulary = dict(vocabulary) if vocabulary else dict(keys)
    if missing := sorted({key for key, size in keys if vocabulary.get(key) != size}):
        raise InputError(f"the policy's family does not cover this network: it has never seen {', '.join(missing)}")
    starts, width = _columns(vocabulary)
    tokens, rows = _token_rows(symmetry)
    unit_index = torch.full((tokens, width), spec.n_weights)
    column_of, token_of = torch.empty(spec.n_weights, dtype=torch.long), torch.empty(spec.n_weights, dtype=torch.long)
    columns = {key: number for number, key in enumerate(vocabulary)}
    edges, edge_descriptors, n_action = [], [], tokens
    for piece, (key, size) in zip(symmetry.pieces, keys, strict=True):
        column_of[piece.index.reshape(-1)] = columns[key]
        hidden = [axis for axis, group in enumerate(piece.groups) if group is not None]
        block = piece.index.movedim(hidden, list(range(len(hidden)))).reshape(*(piece.index.shape[i] for i in hidden), size)
        groups = [piece.groups[axis] for axis in hidden]
        if key.startswith("edge"):
            edges.append(EdgeBlock(key, rows[groups[0]], rows[groups[1]], block))
            edge_descriptors.append(_descriptor(symmetry, groups[0]))
            token_of[block] = n_action + torch.arange(block.shape[0])[:, None, None]
            n_action += block.shape[0]
            continue
        place = rows[groups[0] if groups else None]
        block = block.reshape(-1, size)
        if (unit_index[place, starts[key] : starts[key] + size] != spec.n_weights).any():
            raise InputError(f"{piece.tensor} and another tensor of kind {key} belong to the same units; use tokens=chunk")
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


def _key(piece: Piece, is_vector: bool) -> tuple[str, int]:
    """Which kind of column a piece fills, and how many numbers per unit, or per pair of units (an edge)."""
    hidden = [axis for axis, group in enumerate(piece.groups) if group is not None]
    rest = [n for axis, n in enumerate(piece.index.shape) if axis not in hidden]
    size = prod(rest)
    if len(hidden) > 2:
        raise InputError(f"{piece.tensor} lies between {len(hidden)} groups of units; use tokens=chunk")
    if len(hidden) == 2:
        return ("edge" if size == 1 else f"edge-{'x'.join(map(str, rest))}"), size
    side = ("incoming" if piece.dims[hidden[0]] == 0 else "outgoing") if hidden else "fixed"
    kind = "bias" if is_vector else "weight"
    return f"{side}-{kind}-{'x'.join(map(str, rest)) or '1'}", size


def _columns(vocabulary: Mapping[str, int]) -> tuple[dict[str, int], int]:
    starts, width = {}, 0
    for key, size in vocabulary.items():
        if not key.startswith("edge"):
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
