"""Tokens: how flat weights become a set of vectors for a trunk, and back. One file per scheme; each builds a `TokenLayout`."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
    token sits in the net; token_of [weight] is the action token that each weight belongs to (edge rows count as tokens of
    their own); column_of [weight] is the column of the vocabulary. statistics [number]: what the policy is told of the data set
    that the net is for, if anything. siblings [token]: tokens with the same number are units that the net treats together (the
    channels of one norm group, the dims of one head); None where no units are. n_classes: how many tokens are classes, which a
    trunk knows one by one; None where outputs have no tokens.
    """

    unit_index: Tensor
    descriptors: Tensor
    edges: tuple[EdgeBlock, ...]
    edge_descriptors: Tensor
    token_of: Tensor
    n_action_tokens: int
    column_of: Tensor
    vocabulary: Mapping[str, int]
    statistics: Tensor | None = None
    siblings: Tensor | None = None
    n_classes: int | None = None

    @property
    def n_weights(self) -> int:
        return len(self.token_of)

    @property
    def n_tokens(self) -> int:
        return self.unit_index.shape[0]

    @property
    def n_features(self) -> int:
        return self.unit_index.shape[1]

    def to(self, device: torch.device) -> "TokenLayout":
        edges = tuple(EdgeBlock(edge.kind, edge.out, edge.into, edge.index.to(device)) for edge in self.edges)
        tables = ("unit_index", "descriptors", "edge_descriptors", "token_of", "column_of", "statistics", "siblings")
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
