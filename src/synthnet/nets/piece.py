"""A block of a tensor between groups of interchangeable units."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """A block of one tensor in which every axis is one group of units, or fixed.

    index [*axes] into the flat weights; per axis the group (None: fixed) and the dimension of the tensor that it lies in.
    """

    tensor: str
    index: Tensor
    groups: tuple[str | None, ...]
    dims: tuple[int, ...]

    def permuted(self, permutations: Mapping[str, Tensor]) -> Tensor:
        """Where the weights come from that a permutation of each named group puts here, an index like its own."""
        moved = self.index
        for axis, group in enumerate(self.groups):
            if group not in permutations:
                continue
            chosen = permutations[group]
            if chosen.ndim == 1:
                moved = moved.index_select(axis, chosen)
            else:
                shape = [1] * (axis - 1) + list(chosen.shape) + [1] * (moved.ndim - axis - 1)
                moved = moved.take_along_dim(chosen.view(shape), axis)
        return moved
