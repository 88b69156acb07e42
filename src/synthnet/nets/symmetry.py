"""Which axis of which tensor belongs to which group of interchangeable units, and what follows: permute, balance, align.

Hidden units can be permuted without changing the function (Hecht-Nielsen 1990); ReLU units can also be rescaled (incoming
times c, outgoing over c). Axes that are tied to data (inputs, classes, positions) belong to no group.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod

import torch
from torch import Tensor

from synthnet.nets.axes import Axis, Dim, UntraceableError, axes_of, leaves, recorded, size_of
from synthnet.nets.chain import Chain
from synthnet.nets.piece import Piece
from synthnet.nets.weights import WeightSpec

ALIGN_SWEEPS = 50
GROUP = re.compile(r"hidden[1-9][0-9]{0,5}")


@dataclass(frozen=True)
class Symmetry:
    """The pieces that a network's weights fall into, and its unit groups with their sizes, in order of depth.

    inner: group -> the group whose every unit has such a group of its own (the dims of a head, the channels of a norm's
    group): units of an inner group are permuted within each outer unit, independently. scalable: groups whose units can be
    rescaled.
    """

    spec: WeightSpec
    pieces: tuple[Piece, ...]
    groups: Mapping[str, int]
    inner: Mapping[str, str]
    scalable: frozenset[str]
    axes: Mapping[str, list] = field(default_factory=dict, compare=False)  # of each tensor, as `recorded`

    @classmethod
    def of_chain(cls, spec: WeightSpec, chain: Chain) -> "Symmetry":
        """Of a chain of Linear layers, without tracing anything else."""
        flat, pieces, groups, axes, below = spec.unflatten(spec.positions()), {}, {}, {}, None
        for index, layer in enumerate(chain.layers):
            here = None if index == chain.depth - 1 else f"hidden{index + 1}"
            pieces[layer.weight] = Piece(layer.weight, flat[layer.weight], (here, below), (0, 1))
            axes[layer.weight] = [_plain(here, layer.n_out), _plain(below, layer.n_in)]
            if layer.bias:
                pieces[layer.bias] = Piece(layer.bias, flat[layer.bias], (here,), (0,))
                axes[layer.bias] = [_plain(here, layer.n_out)]
            if here:
                groups[here] = layer.n_out
            below = here
        scalable = frozenset(groups) if chain.homogeneous else frozenset()
        return cls(spec, tuple(pieces[tensor.name] for tensor in spec.floats), groups, {}, scalable, axes)

    @classmethod
    def of_axes(cls, spec: WeightSpec, found: Mapping[str, list[Dim]], known: Mapping[int, str] | None = None) -> "Symmetry":
        """From the axes of every tensor (`tracing.parameter_axes`), in order of depth; `known`: names of groups by the id of
        their axis. No group counts as scalable yet."""
        flat, raw = spec.unflatten(spec.positions()), []
        for name, dims in found.items():
            if name in flat:
                raw += _blocks(name, flat[name], dims)
        names: dict[int, str] = dict(known or {})
        for _, _, axes, _ in raw:
            for axis in axes:
                if not axis.fixed:
                    names.setdefault(id(axis), f"hidden{len(names) + 1}")
        sizes = {names[id(axis)]: axis.size for _, _, axes, _ in raw for axis in axes if id(axis) in names}
        pieces = tuple(Piece(name, index, tuple(names.get(id(axis)) for axis in axes), dims) for name, index, axes, dims in raw)
        axes = {name: [recorded(dim, names) for dim in dims] for name, dims in found.items()}
        return cls(spec, pieces, {group: sizes[group] for group in names.values()}, _inner(pieces), frozenset(), axes)

    def recorded(self) -> dict:
        """What `of_record` makes it from again, as JSON: of each tensor, in order of depth, its dimensions as products of
        axes [group or null, size], or of sums of such products end to end; and the groups that can be rescaled."""
        return {"axes": [[name, dims] for name, dims in self.axes.items()], "scalable": sorted(self.scalable)}

    @classmethod
    def of_record(cls, spec: WeightSpec, record: Mapping) -> "Symmetry":
        """From what a file says. Raises: UntraceableError where it says that there are none; ValueError for others."""
        if "untraced" in record:
            raise UntraceableError(record["untraced"])
        made: dict[tuple, Axis] = {}
        found = {name: [axes_of(dim, made) for dim in dims] for name, dims in record["axes"]}
        shapes = {tensor.name: tensor.shape for tensor in spec.floats}
        for name, shape in shapes.items():
            if [size_of(dim) for dim in found[name]] != list(shape):
                raise ValueError(f"the axes of {name} are not of its shape")
        names = {id(axis): name for (name, _), axis in made.items()}
        if len(set(names.values())) < len(names) or not all(GROUP.fullmatch(name) for name in names.values()):
            raise ValueError("groups of units should be hidden1, hidden2, …, of one size each")
        symmetry = cls.of_axes(spec, found, names)
        return replace(symmetry, scalable=frozenset(record["scalable"]) & frozenset(symmetry.groups))

    def permute(self, flat: Tensor, permutations: Mapping[str, Tensor]) -> Tensor:
        """Weights [... weights] with the units of each named group reordered: new unit i is old unit permutation[i].

        The permutation of an inner group is [outer inner]: one for each (new) outer unit.
        """
        order = self.spec.positions()
        for piece in self.pieces:
            order[piece.index.reshape(-1)] = piece.permuted(permutations).reshape(-1)
        return flat[..., order]

    def rescale(self, flat: Tensor, group: str, factors: Tensor) -> Tensor:
        """Weights [net weights] with what a group's units receive times `factors` [net unit], and what reads them over it."""
        flat = flat.clone()
        for piece in self.pieces:
            for axis, member in enumerate(piece.groups):
                if member == group:
                    place = [-1 if i == axis else 1 for i in range(piece.index.ndim)]
                    scale = factors.view(len(flat), *place)
                    flat[:, piece.index] *= scale if piece.dims[axis] == 0 else 1 / scale
        return flat

    def told_apart(self, flat: Tensor) -> dict[str, int]:
        """How many of each group's units differ from one another in what they receive or give; one net's weights [weights]."""
        found = {}
        for group, size in self.groups.items():
            rows = [
                flat[piece.index].movedim(axis, 0).reshape(size, -1) + 0.0  # -0 is 0
                for piece in self.pieces
                for axis, member in enumerate(piece.groups)
                if member == group
            ]
            found[group] = len({row.numpy().tobytes() for row in torch.cat(rows, 1)})
        return found

    def balance(self, flat: Tensor) -> Tensor:
        """Weights [net weights] of the same function in which each scalable unit's incoming and outgoing norms are equal.

        Norms include the bias. Sweeps from the first group on until nothing moves.
        """
        groups = [group for group in self.groups if group in self.scalable]
        for _ in range(1 if len(groups) == 1 else ALIGN_SWEEPS):
            largest = 0.0
            for group in groups:
                norms = {True: 0.0, False: 0.0}
                for piece in self.pieces:
                    for axis, member in enumerate(piece.groups):
                        if member == group:
                            rows = flat[:, piece.index].movedim(axis + 1, 1).reshape(len(flat), self.groups[group], -1)
                            norms[piece.dims[axis] == 0] = norms[piece.dims[axis] == 0] + rows.square().sum(-1)
                incoming, outgoing = norms[True], norms[False]
                ratio = (outgoing / incoming).pow(0.25)
                ratio = torch.where((outgoing > 0) & (incoming > 0), ratio, torch.ones_like(ratio))
                flat = self.rescale(flat, group, ratio)
                largest = max(largest, (ratio - 1).abs().max().item())
            if largest < 1e-6:
                break
        return flat

    def align(self, flat: Tensor, reference: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One net's weights [weights], its units permuted to lie as near to `reference` [weights] as a fixed point allows.

        Coordinate descent over groups with the Hungarian algorithm (Ainsworth et al. 2022, 'Git Re-Basin', algorithm 1);
        exact for a single hidden group. Returns the aligned weights and the permutation of each group.
        """
        from scipy.optimize import linear_sum_assignment  # half a second that synthesis does not need

        permutations = self.identity()
        weights, target, near = flat.double(), reference.double(), self._neighbours()
        settled: set[str] = set()  # nothing that touches them moved since they were last looked at
        for _ in range(ALIGN_SWEEPS):
            if len(settled) == len(self.groups):
                break
            for group in self.groups:
                if group in settled:
                    continue
                settled.add(group)
                gain = self._gain(group, weights, {g: p for g, p in permutations.items() if g != group}, target)
                best = torch.stack([torch.as_tensor(linear_sum_assignment(g.numpy(), maximize=True)[1]) for g in gain])
                now = permutations[group].view(len(gain), -1)
                rows = torch.arange(gain.shape[1])
                improvement = sum((g[rows, b] - g[rows, n]).sum() for g, b, n in zip(gain, best, now, strict=True))
                if improvement > 1e-9:
                    permutations[group] = best.view_as(permutations[group])
                    settled -= near[group]
        return self.permute(flat, permutations), permutations

    def _neighbours(self) -> dict[str, set[str]]:
        """Of each group, those that it shares a piece with."""
        near: dict[str, set[str]] = {group: set() for group in self.groups}
        for piece in self.pieces:
            groups = {group for group in piece.groups if group is not None}
            for group in groups:
                near[group] |= groups - {group}
        return near

    def identity(self) -> dict[str, Tensor]:
        """The permutation of each group that moves nothing."""
        return {
            group: torch.arange(size).expand(self.groups[self.inner[group]], -1) if group in self.inner else torch.arange(size)
            for group, size in self.groups.items()
        }

    def random(self, draw: torch.Generator) -> dict[str, Tensor]:
        """A random permutation of each group, inner groups within each outer unit."""
        return {
            group: torch.stack([torch.randperm(size, generator=draw) for _ in range(self.groups[self.inner[group]])])
            if group in self.inner
            else torch.randperm(size, generator=draw)
            for group, size in self.groups.items()
        }

    def unit_rows(self, group: str, flat: Tensor) -> Tensor:
        """All weights of each unit of a group that is nobody's inner one [net unit feature], from weights [net weights]."""
        rows = [
            flat[:, piece.index].movedim(axis + 1, 1).reshape(len(flat), self.groups[group], -1)
            for piece in self.pieces
            for axis, member in enumerate(piece.groups)
            if member == group
        ]
        return torch.cat(rows, dim=2)

    def outside(self, group: str) -> Tensor:
        """Positions of the weights that no unit of a group owns."""
        owned = [piece.index.reshape(-1) for piece in self.pieces if group in piece.groups]
        free = torch.ones(self.spec.n_weights, dtype=torch.bool)
        free[torch.cat(owned)] = False
        return free.nonzero().squeeze(1)

    def signature(self, flat: Tensor) -> Tensor:
        """Numbers [net feature] that no permutation changes: moments of each piece over its units, along its fixed axes."""
        made = []
        for piece in self.pieces:
            hidden = [axis + 1 for axis, group in enumerate(piece.groups) if group is not None]
            values = flat[:, piece.index]
            for moment in (values, values.square()):
                made.append((moment.mean(hidden) if hidden else moment).reshape(len(flat), -1))
        return torch.cat(made, dim=1)

    def _gain(self, group: str, flat: Tensor, others: Mapping[str, Tensor], reference: Tensor) -> Tensor:
        """Inner products [block reference-unit unit] of a group's weights, those of `flat` after permutations of other groups;
        one block, or one per outer unit."""
        nested = group in self.inner
        gain: Tensor | float = 0.0
        for piece in self.pieces:
            for axis, member in enumerate(piece.groups):
                if member == group:
                    lead = (axis - 1, axis) if nested else (axis,)
                    rows = [reference[piece.index], flat[piece.permuted(others)]]
                    rows = [row.movedim(lead, tuple(range(len(lead)))) for row in rows]
                    rows = [row.reshape(*row.shape[: len(lead)], -1) for row in rows]
                    target, own = rows if nested else [row.unsqueeze(0) for row in rows]
                    gain = gain + target @ own.transpose(1, 2)
        return gain


def _plain(group: str | None, size: int) -> list:
    return [[group, size]] if size > 1 else []


def _blocks(name: str, index: Tensor, dims: list[Dim]) -> list[tuple[str, Tensor, list[Axis], tuple[int, ...]]]:
    """A tensor cut where a dimension is a sum of axes, each block with its axes and the dimensions they lie in."""
    cuts = []
    for dim in dims:
        start, segments = 0, []
        for axes in _segments(name, leaves(dim)):
            size = prod(axis.size for axis in axes)
            segments.append((slice(start, start + size), axes))
            start += size
        cuts.append(segments)
    found = []
    for parts in product(*cuts):
        axes = [axis for _, part in parts for axis in part]
        where = tuple(number for number, (_, part) in enumerate(parts) for _ in part)
        block = index[tuple(place for place, _ in parts)]
        found.append((name, block.reshape([axis.size for axis in axes]), axes, where))
    return found


def _segments(name: str, axes: list[Axis]) -> list[list[Axis]]:
    """A dimension, as the products of plain axes that it consists of end to end."""
    if any(axis.sum for axis in axes[1:]):
        raise UntraceableError(f"{name}: units from several sources are interleaved")
    if not axes or not axes[0].sum:
        return [axes]
    return [[*head, *axes[1:]] for part in axes[0].sum for head in _segments(name, leaves([part]))]


def _inner(pieces: tuple[Piece, ...]) -> dict[str, str]:
    """Groups that always stand directly behind one and the same other group, within one dimension."""
    before: dict[str, set[str | None]] = {}
    for piece in pieces:
        for axis, group in enumerate(piece.groups):
            if group is not None:
                behind = axis > 0 and piece.dims[axis - 1] == piece.dims[axis]
                before.setdefault(group, set()).add(piece.groups[axis - 1] if behind else None)
    return {group: outer for group, found in before.items() if len(found) == 1 and (outer := next(iter(found)))}
