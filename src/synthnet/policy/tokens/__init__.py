"""Tokens: how flat weights become a set of vectors for a trunk, and back. One file per scheme; each builds a `TokenLayout`."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import ModuleType

import torch
from torch import Tensor

from synthnet.settings import option


@dataclass(frozen=True)
class EdgeBlock:
    """The weights between two groups of units: index [out in element] into the flat weights; slices of the token axis; the
    kind of weights, a key of the vocabulary."""

    kind: str
    out: slice
    into: slice
    index: Tensor


@dataclass(frozen=True)
class Tokens:
    """Encoded weights: units [net token feature], and one [net out in element] tensor per edge block."""

    units: Tensor
    edges: tuple[Tensor, ...]


@dataclass(frozen=True)
class TokenLayout:
    """An exact, invertible map between flat weights and tokens, as index tables. Padding reads zero and is never written.

    unit_index [token feature] holds flat positions, or `n_weights` for padding; descriptors [token descriptor] say where a
    token sits in the net; vocabulary: the kinds of column and how many features (of edges: numbers) each has, in order.
    statistics [number]: what the policy is told of the data set that the net is for, if anything. siblings [token]: tokens with
    the same number are units that the net treats together (the channels of one norm group, the dims of one head); None where
    no units are. n_classes: how many tokens are classes, which a trunk knows one by one; None where outputs have no tokens.
    """

    unit_index: Tensor
    descriptors: Tensor
    edges: tuple[EdgeBlock, ...]
    edge_descriptors: Tensor
    n_weights: int
    vocabulary: Mapping[str, int]
    statistics: Tensor | None = None
    siblings: Tensor | None = None
    n_classes: int | None = None

    @property
    def n_tokens(self) -> int:
        return self.unit_index.shape[0]

    @property
    def n_features(self) -> int:
        return self.unit_index.shape[1]

    @property
    def n_action_tokens(self) -> int:
        """Tokens of actions: units, and rows of edges."""
        return self.n_tokens + sum(edge.index.shape[0] for edge in self.edges)

    @cached_property
    def token_of(self) -> Tensor:
        """The action token that each weight belongs to [weight]; made where it is asked for, as of a large net it is large."""
        rows = torch.arange(self.n_action_tokens, dtype=torch.int32, device=self.unit_index.device)
        units, *edges = rows.split([self.n_tokens, *(edge.index.shape[0] for edge in self.edges)])
        return self._spread(units[:, None], [own[:, None, None] for own in edges])

    @cached_property
    def column_of(self) -> Tensor:
        """The column of the vocabulary that each weight stands in [weight]."""
        kinds = torch.arange(len(self.vocabulary), dtype=torch.int32, device=self.unit_index.device)
        number = dict(zip(self.vocabulary, kinds, strict=True))
        features = [number[kind].expand(size) for kind, size in self.vocabulary.items() if not kind.startswith("edge")]
        return self._spread(torch.cat(features), [number[edge.kind] for edge in self.edges])

    def _spread(self, units: Tensor, edges: Sequence[Tensor]) -> Tensor:
        """Flat [weight] from what the weights of units [token feature] and of each block of edges have."""
        flat = units.new_empty(self.n_weights + 1)  # the last one takes what stands in padding
        flat[self.unit_index] = units.expand_as(self.unit_index)
        for edge, value in zip(self.edges, edges, strict=True):
            flat[edge.index] = value.expand_as(edge.index)
        return flat[:-1]

    def to(self, device: torch.device) -> "TokenLayout":
        edges = tuple(EdgeBlock(edge.kind, edge.out, edge.into, edge.index.to(device)) for edge in self.edges)
        tables = ("unit_index", "descriptors", "edge_descriptors", "statistics", "siblings")
        moved = {name: getattr(self, name).to(device) for name in tables if getattr(self, name) is not None}
        return replace(self, edges=edges, **moved)

    def encode(self, flat: Tensor) -> Tokens:
        """Flat weights [net weights] -> tokens."""
        padded = torch.nn.functional.pad(flat, (0, 1))
        return Tokens(_select(padded, self.unit_index), tuple(_select(flat, edge.index) for edge in self.edges))

    def decode(self, tokens: Tokens) -> Tensor:
        """Tokens -> flat weights [net weights]; what stands in padding is ignored."""
        flat = tokens.units.new_empty(len(tokens.units), self.n_weights + 1)  # the last one takes what stands in padding
        flat[:, self.unit_index] = tokens.units
        for block, values in zip(self.edges, tokens.edges, strict=True):
            flat[:, block.index] = values
        return flat[:, :-1]


def _select(flat: Tensor, index: Tensor) -> Tensor:
    """flat[:, index], without the copy of the index in int64 that indexing makes."""
    return flat.index_select(1, index.reshape(-1)).view(len(flat), *index.shape)


def build_layout(config: dict, spec, symmetry, vocabulary: Mapping[str, int] | None = None) -> TokenLayout:
    """The layout of one network under a token scheme {name, …}; with a vocabulary, columns are placed as it says.

    Raises: InputError for an unknown scheme, or a network that the vocabulary does not cover.
    """
    settings = dict(config)
    module = _scheme(settings.pop("name"))
    return module.build(module.Config(**settings), spec, symmetry, vocabulary)


def reads_units(config: dict) -> bool:
    """Whether a token scheme {name, …} is built from the unit groups of a net: READS_UNITS of its file."""
    return getattr(_scheme(config["name"]), "READS_UNITS", False)


def _scheme(name: str) -> ModuleType:
    return option(sys.modules[__name__], name, "token scheme")
