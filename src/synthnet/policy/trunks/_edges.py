"""The states of edges while a trunk thinks: held in memory, or computed again tile by tile from what the units were.

There is a state of `edge_dim` numbers for every pair of units, so for a network of many millions of weights they are what
fills the memory. A state depends on its own weights and on its two units at each exchange, so it can be forgotten and
computed again from the few states of units that were kept: more arithmetic, memory of one tile. After the last exchange
nothing more is asked of a state than what leaves the trunk, so that is made there and then. Both ways work in the same tiles
in the same order, so they give the same bits.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from synthnet.policy.tokens import EdgeBlock

TILE = 1 << 14  # edges of one net in a tile, as whole rows: what lies between takes a megabyte or two, and stays in a cache


class Ends(NamedTuple):
    """What the units of one block give its edges at one exchange: [net out dim] and [net in dim]."""

    out: Tensor
    into: Tensor

    def tile(self, rows: slice) -> Tensor:
        """[net rows in dim]."""
        return self.out[:, rows].unsqueeze(2) + self.into.unsqueeze(1)


Update = Callable[[Tensor, Tensor, int], Tensor]  # an edge tile, what its ends give, the block's number -> the tile, updated
Leave = Callable[[Tensor, int], Tensor]  # an edge tile, the block's number -> what leaves the trunk [net rows in column]


def tiles(block: EdgeBlock) -> Iterator[slice]:
    """The rows of a block, so many at a time as make a tile."""
    n_out, n_in = block.index.shape[:2]
    size = max(1, TILE // n_in)
    for first in range(0, n_out, size):
        yield slice(first, min(first + size, n_out))


@dataclass
class HeldEdges:
    """The states of every block, in memory: a list of tiles [net rows in dim] for each."""

    states: list[list[Tensor]]
    leave: Leave

    def read(self, number: int, tile: int, rows: slice) -> Tensor:
        return self.states[number][tile]

    def keep(self, number: int, tile: int, state: Tensor) -> None:
        self.states[number] = [*self.states[number][:tile], state, *self.states[number][tile + 1 :]]

    def exchanged(self, update: Update, ends: Sequence[Ends]) -> None:
        """What was computed is kept already."""

    def left(self, number: int) -> list[Tensor]:
        """What leaves the trunk of a block, tile by tile."""
        return [self.leave(state, number) for state in self.states[number]]


@dataclass
class StreamedEdges:
    """The states of every block, computed from the start whenever they are read. `enter(number, rows)` gives a tile before the
    first exchange; `exchanges`: how many there will be."""

    enter: Callable[[int, slice], Tensor]
    leave: Leave
    exchanges: int
    past: list[tuple[Update, Sequence[Ends]]] = field(default_factory=list)
    done: dict[int, list[Tensor]] = field(default_factory=dict)

    def read(self, number: int, tile: int, rows: slice) -> Tensor:
        state = self.enter(number, rows)
        for update, ends in self.past:
            state = update(state, ends[number].tile(rows), number)
        return state

    def keep(self, number: int, tile: int, state: Tensor) -> None:
        """Forgotten, as it can be computed again; of the last exchange, what leaves the trunk stays."""
        if len(self.past) == self.exchanges - 1:
            self.done.setdefault(number, []).append(self.leave(state, number))

    def exchanged(self, update: Update, ends: Sequence[Ends]) -> None:
        self.past.append((update, ends))

    def left(self, number: int) -> list[Tensor]:
        """What leaves the trunk of a block, tile by tile."""
        if len(self.past) != self.exchanges:
            raise RuntimeError(f"a trunk of {self.exchanges} exchanges made {len(self.past)}: each should be made once")
        return self.done.pop(number)


Edges = HeldEdges | StreamedEdges
