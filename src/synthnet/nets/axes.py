"""Axes of tensors, followed through a computation: which places of which tensors are one and the same set of units.

An axis is plain, or a product of axes (row-major, as a view or a flatten makes it), or a sum of axes end to end (as a
concatenation or a slice makes it). Operations merge axes; what a merge or a view demands, it splits. A *fixed* axis has places
with a meaning of their own: examples, pixels, classes, positions.
"""

from collections.abc import Mapping
from math import prod

from synthnet.errors import InputError


class UntraceableError(InputError):
    """A module whose unit groups cannot be derived; the message names the operation."""


class Axis:
    """A node of a union-find forest; read it through `root`, `leaves` and `segments`."""

    def __init__(self, size: int, fixed: bool = False):
        self.size, self.fixed = size, fixed
        self.parent: Axis | None = None
        self.product: tuple[Axis, ...] = ()
        self.sum: tuple[Axis, ...] = ()

    def root(self) -> "Axis":
        axis = self
        while axis.parent is not None:
            axis = axis.parent
        return axis


Dim = list[Axis]  # one dimension of a tensor: a product of axes


def size_of(dim: Dim) -> int:
    return prod(axis.size for axis in dim)


def leaves(dim: Dim) -> Dim:
    """The dimension as a product of axes that are no products themselves; axes of size 1 drop out."""
    found: Dim = []
    for axis in dim:
        axis = axis.root()
        if axis.product:
            found += leaves(list(axis.product))
        elif axis.size > 1:
            found.append(axis)
    return found


def fix(dim: Dim) -> None:
    """Every place of the dimension has a meaning of its own from now on."""
    for axis in leaves(dim):
        axis.fixed = True
        fix(list(axis.sum))


def _split(axis: Axis, first: int) -> tuple[Axis, ...]:
    """Make a plain axis a product whose first factor has this size."""
    if axis.sum:
        fix([axis])
        return Axis(first, fixed=True), Axis(axis.size // first, fixed=True)
    if axis.size % first:
        raise UntraceableError(f"an axis of {axis.size} units cannot be seen as {first} x {axis.size / first:g}")
    axis.product = (Axis(first, axis.fixed), Axis(axis.size // first, axis.fixed))
    return axis.product


def cut(axis: Axis, sizes: list[int]) -> tuple[Axis, ...]:
    """Make an axis a sum of segments of these sizes; a sum is cut further where its segments do not line up."""
    axis = axis.root()
    if axis.product:
        raise UntraceableError(f"an axis of {axis.size} units is seen both as a product and as segments")
    if not axis.sum:
        axis.sum = tuple(Axis(size, axis.fixed) for size in sizes)
        return axis.sum
    wanted, have = list(sizes), list(axis.sum)
    segments: list[Axis] = []
    while wanted:
        part = have.pop(0).root()
        if part.size > wanted[0]:
            part, *tail = cut(part, [wanted[0], part.size - wanted[0]])
            have = [*tail, *have]
        segments.append(part)
        wanted[0] -= part.size
        if wanted[0] == 0:
            wanted.pop(0)
    axis.sum = tuple(segments) + tuple(have)
    return axis.sum


def merge(a: Dim, b: Dim) -> None:
    """The two dimensions have the same places. Raises: UntraceableError where no common structure exists."""
    left, right = leaves(a), leaves(b)
    if size_of(left) != size_of(right):
        raise UntraceableError(f"dimensions of {size_of(left)} and {size_of(right)} places cannot be the same")
    while left and right:
        x, y = left.pop(0), right.pop(0)
        if x is y:
            continue
        if x.size != y.size and (x.sum or y.sum):  # blocks across the seams of a sum: nothing can be exchanged
            fix([*a, *b])
            return
        if x.size < y.size:
            right, left = [*_split(y, x.size), *right], [x, *left]
        elif x.size > y.size:
            left, right = [*_split(x, y.size), *left], [y, *right]
        else:
            _unite(x, y)


def _unite(x: Axis, y: Axis) -> None:
    if y.sum and not x.sum:
        x, y = y, x
    if y.sum:
        sizes = [axis.root().size for axis in y.sum]
        if [axis.root().size for axis in x.sum] != sizes:
            bounds = _bounds(x.sum) | _bounds(y.sum)
            steps = sorted(bounds)
            sizes = [end - start for start, end in zip([0, *steps], steps, strict=False)]
            cut(x, sizes)
            cut(y, sizes)
        for mine, other in zip(x.sum, y.sum, strict=True):
            merge([mine], [other])
    if x.fixed or y.fixed:
        fix([x])
        fix([y])
    y.parent = x


def _bounds(segments: tuple[Axis, ...]) -> set[int]:
    ends, total = set(), 0
    for axis in segments:
        total += axis.root().size
        ends.add(total)
    return ends


def reshaped(dims: list[Dim], shape: list[int]) -> list[Dim]:
    """The dimensions of a view of this shape."""
    places, found = [axis for dim in dims for axis in leaves(dim)], []
    for size in shape:
        dim: Dim = []
        while size_of(dim) < size:
            axis = places.pop(0).root()
            if axis.product:
                places = [*axis.product, *places]
                continue
            if size % (size_of(dim) * axis.size):
                needed = size // size_of(dim)
                places = [*_split(axis, needed), *places]
                continue
            dim.append(axis)
        found.append(dim)
    return found


MOST_NESTED = 8  # products of sums of products …


def recorded(dim: Dim, names: Mapping[int, str]) -> list:
    """A dimension as JSON: a product of axes [group or null, size], or of sums of such products end to end."""
    return [
        {"sum": [recorded([part], names) for part in axis.sum]} if axis.sum else [names.get(id(axis)), axis.size]
        for axis in leaves(dim)
    ]


def axes_of(dim: list, made: dict[tuple, Axis], depth: int = 0) -> Dim:
    """A dimension from what `recorded` made of it; `made`: groups of units by name and size, in order of first sight.

    Raises: ValueError for anything else.
    """
    if depth > MOST_NESTED:
        raise ValueError("its axes are nested too deeply")
    found = []
    for entry in dim:
        if isinstance(entry, dict):
            parts = [axes_of(part, made, depth + 1) for part in entry["sum"]]
            axis = Axis(sum(size_of(part) for part in parts))
            axis.sum = tuple(part[0] if len(part) == 1 else _product(part) for part in parts)
        else:
            name, size = entry
            if type(size) is not int or not 1 < size < 1 << 31 or not isinstance(name, str | None):
                raise ValueError("an axis is a group or null, and a size above 1")
            axis = Axis(size, fixed=True) if name is None else made.setdefault((name, size), Axis(size))
        found.append(axis)
    return found


def _product(axes: Dim) -> Axis:
    whole = Axis(size_of(axes))
    whole.product = tuple(axes)
    return whole
