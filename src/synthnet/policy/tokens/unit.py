"""Unit tokens: one token per hidden unit with all its weights along fixed axes, and edge blocks between hidden groups.

A policy over them is exactly equivariant to permutations of hidden units: the token axis carries no position. Tensors
without a hidden axis (the output bias) share one extra token. Units of an inner group (the dims of a head, the channels of a
norm's group) are units like any other, one for each pair of outer and inner unit; which of them stand together is what
`siblings` tells.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log, prod

import torch
from torch import Tensor

from synthnet.errors import InputError
from synthnet.nets import Piece, Symmetry, WeightSpec
from synthnet.policy.tokens import EdgeBlock, TokenLayout
from synthnet.settings import check_settings, setting

CLASSES = "classes"
READS_UNITS = True
DEPTHS = {  # place of a hidden layer, counted from the first and from the last one -> two numbers
    "relative": lambda first, last: (first / (first + last), last / (first + last)),
    "ends": lambda first, last: (1 / first, 1 / last),
    "untold": lambda first, last: (0.5, 0.5),
}
Units = tuple[str, ...]  # a group of units: a group of the symmetry, or an outer and an inner one


@dataclass
class Config:
    """classes: with them, the weights of the last layer are edges between hidden units and the outputs' own tokens; without, a
    hidden unit's token holds its weights to all classes. depth: `ends` makes a layer in the middle of a deep net one that is
    near neither end, not one between the first and the last; `untold` leaves what a layer is to what it is connected to."""

    name: str = "unit"
    classes: bool = setting(False, "outputs are units too, each with an identity of its own")
    depth: str = setting(
        "relative", "how hidden layer k of n is told: k/(n+1) from both ends; 1/k and 1/(n+1−k); nothing", choices=tuple(DEPTHS)
    )


def build(config: Config, spec: WeightSpec, symmetry: Symmetry | None, vocabulary: Mapping[str, int] | None) -> TokenLayout:
    if symmetry is None:
        raise InputError("unit tokens need a traced architecture; use tokens=chunk for a file without one")
    check_settings("tokens", config)
    parts = _parts(spec, symmetry, config.classes)
    vocabulary = dict(vocabulary) if vocabulary else {part.key: part.size for part in parts}
    if missing := sorted({part.key for part in parts if vocabulary.get(part.key) != part.size}):
        raise InputError(f"the policy's family does not cover this network: it has never seen {', '.join(missing)}")
    starts, width = _columns(vocabulary)
    tokens, rows, sizes = _token_rows(parts)
    unit_index = torch.full((tokens, width), spec.n_weights, dtype=torch.int32)
    edges, edge_descriptors = [], []
    for part in parts:
        block = part.block
        if part.is_edge:
            edges.append(EdgeBlock(part.key, rows[part.units[0]], rows[part.units[1]], block))
            edge_descriptors.append(_descriptor(sizes, part.units[0], config))
            continue
        place = rows[part.units[0] if part.units else None]
        unit_index[place, starts[part.key] : starts[part.key] + part.size] = block
    descriptors = [
        _descriptor(sizes, group, config, number) for group, place in rows.items() for number in range(place.stop - place.start)
    ]
    return TokenLayout(
        unit_index,
        torch.tensor(descriptors),
        tuple(edges),
        torch.tensor(edge_descriptors).reshape(-1, len(descriptors[0])),
        spec.n_weights,
        vocabulary,
        siblings=_siblings(parts, rows),
        n_classes=sizes[CLASSES,] if config.classes else None,
    )


@dataclass(frozen=True)
class Part:
    """A piece of a tensor as tokens read it: the groups of units it lies between, the kind of column it fills, and its weights,
    index [unit size], [out in size] for an edge, or [1 size] without units."""

    units: tuple[Units, ...]
    key: str
    size: int
    block: Tensor
    together: tuple[int, ...]  # for each group of units, how many of them in a row belong to one outer unit

    @property
    def is_edge(self) -> bool:
        return len(self.units) == 2


def _parts(spec: WeightSpec, symmetry: Symmetry, classes: bool) -> list[Part]:
    """The second tensor of a kind that the same units have (a norm's scale beside a bias, the bias of the next layer of a
    residual stream) fills columns of its own: kind~2, and so on."""
    vectors = {tensor.name for tensor in spec.floats if len(tensor.shape) == 1}
    n_outputs = {piece.index.shape[0] for piece in symmetry.pieces if classes and piece.groups == (None,)}
    if classes and len(n_outputs) != 1:
        raise InputError("tokens.classes needs a net with one output bias to tell its classes by; use tokens.classes=false")
    seen: dict[tuple, int] = {}
    parts = []
    for piece in symmetry.pieces:
        if piece.groups[:1] == (None,) and piece.dims[0] == 0 and piece.index.shape[0] in n_outputs:
            piece = replace(piece, groups=(CLASSES, *piece.groups[1:]))
        axes = _unit_axes(piece, symmetry)
        if len(axes) > 2:
            raise InputError(f"{piece.tensor} lies between {len(axes)} groups of units; use tokens=chunk")
        units = tuple(tuple(piece.groups[axis] for axis in place) for place in axes)
        hidden = [axis for place in axes for axis in place]
        rest = [n for axis, n in enumerate(piece.index.shape) if axis not in hidden]
        counts = [prod(piece.index.shape[axis] for axis in place) for place in axes] or [1]
        block = piece.index.movedim(hidden, list(range(len(hidden)))).reshape(*counts, prod(rest))
        key = _key(piece, axes, rest, piece.tensor in vectors)
        if len(axes) < 2:
            seen[units, key] = seen.get((units, key), 0) + 1
            key += f"~{seen[units, key]}" if seen[units, key] > 1 else ""
        together = tuple(prod(piece.index.shape[axis] for axis in place[1:]) for place in axes)
        parts.append(Part(units, key, prod(rest), block, together))
    return parts


def _unit_axes(piece: Piece, symmetry: Symmetry) -> list[tuple[int, ...]]:
    """The axes of each group of units that a piece has; an inner group stands together with its outer one."""
    places: list[tuple[int, ...]] = []
    for axis, group in enumerate(piece.groups):
        if group is None:
            continue
        nested = axis and group in symmetry.inner and symmetry.inner[group] == piece.groups[axis - 1]
        if nested and piece.dims[axis] == piece.dims[axis - 1]:
            places[-1] = (*places[-1], axis)
        else:
            places.append((axis,))
    return places


def _key(piece: Piece, axes: list[tuple[int, ...]], rest: list[int], is_vector: bool) -> str:
    """Which kind of column a piece fills: numbers per unit, or per pair of units (an edge)."""
    shape = "x".join(map(str, rest))
    if len(axes) == 2:
        kind = "edge-out" if CLASSES in piece.groups else "edge"
        return f"{kind}-{shape}" if prod(rest) > 1 else kind
    side = ("incoming" if piece.dims[axes[0][0]] == 0 else "outgoing") if axes else "fixed"
    return f"{side}-{'bias' if is_vector else 'weight'}-{shape or '1'}"


def _columns(vocabulary: Mapping[str, int]) -> tuple[dict[str, int], int]:
    starts, width = {}, 0
    for key, size in vocabulary.items():
        if not key.startswith("edge"):
            starts[key], width = width, width + size
    return starts, width


def _token_rows(parts: list[Part]) -> tuple[int, dict[Units | None, slice], dict[Units, int]]:
    """The rows of each group of units, in order of depth, then one row for what has no units; and the groups' sizes."""
    sizes: dict[Units, int] = {}
    for part in parts:
        for units, size in zip(part.units, part.block.shape, strict=False):
            sizes.setdefault(units, size)
    rows, start = {}, 0
    for units, size in sorted(sizes.items(), key=lambda entry: _order(entry[0])):
        rows[units] = slice(start, start + size)
        start += size
    rows[None] = slice(start, start + 1)
    return start + 1, rows, {units: sizes[units] for units in rows if units}


def _siblings(parts: list[Part], rows: dict[Units | None, slice]) -> Tensor | None:
    """The number of the set that each token's unit belongs to, where any does [token]."""
    inner = {units: n for part in parts for units, n in zip(part.units, part.together, strict=True) if len(units) > 1}
    if not inner:
        return None
    siblings = torch.arange(rows[None].stop)
    for units, together in inner.items():
        place = torch.arange(rows[units].stop - rows[units].start)
        siblings[rows[units]] = rows[units].start + place // together * together
    return siblings


def _order(units: Units) -> list[int]:
    return [1 << 30 if group == CLASSES else int(group.removeprefix("hidden")) for group in units]


def _descriptor(sizes: Mapping[Units, int], units: Units | None, config: Config, number: int = 0) -> list[float]:
    """Depth from both ends, width on a log scale, and a flag for what cannot be permuted; then, where classes are units, which
    class it is."""
    n_classes = sizes[CLASSES,] if config.classes else 0
    which = [float(units == (CLASSES,) and number == index) for index in range(n_classes)]
    if units is None or units == (CLASSES,):
        return [1.0, 0.0, 0.0, 1.0, *which]
    hidden = [group for group in sizes if group != (CLASSES,)]
    from_start, from_end = hidden.index(units) + 1, len(hidden) - hidden.index(units)
    return [*DEPTHS[config.depth](from_start, from_end), log(sizes[units]) / 5, 0.0, *which]
