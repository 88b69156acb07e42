"""Which dimensions an operation makes one and the same: a rule per ATen operation, from its arguments' dimensions to its own.

Every rule takes the shape of the result first. What is not listed in RULES is not understood.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch

from synthnet.nets.axes import Axis, Dim, UntraceableError, cut, fix, leaves, merge, reshaped, size_of

aten = torch.ops.aten


def _fresh(shape) -> list[Dim]:
    return [[Axis(n, fixed=True)] for n in shape]


def _same(shape, x, *_, **__):
    return x


def _binary(shape, a, b, *_, **__):
    """Element-wise with broadcasting: dimensions of equal size are the same."""
    if not isinstance(a, list) or not isinstance(b, list):
        return a if isinstance(a, list) else b
    width = max(len(a), len(b))
    rows = [[[]] * (width - len(x)) + x for x in (a, b)]
    found = []
    for p, q in zip(*rows, strict=True):
        if leaves(p) and leaves(q):
            merge(p, q)
        found.append(p if leaves(p) else q)
    return found


def _linear(shape, x, weight, bias=None):
    merge(x[-1], weight[1])
    if bias is not None:
        merge(weight[0], bias[0])
    return [*x[:-1], weight[0]]


def _conv(shape, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if groups == 1:
        merge(x[1], weight[1])
    else:  # block g of the outputs reads block g of the inputs
        blocks = Axis(groups)
        merge([blocks, *weight[1]], x[1])
        merge([blocks, Axis(size_of(weight[0]) // groups)], weight[0])
    for dim in weight[2:]:
        fix(dim)
    if bias is not None:
        merge(weight[0], bias[0])
    return [x[0], weight[0], *_fresh(shape[2:])]


def _channel_norm(shape, x, *parameters):
    for parameter in parameters:
        if isinstance(parameter, list) and len(parameter) == 1 and isinstance(parameter[0], list):
            merge(x[1], parameter[0])
    return x


def _batch_norm(shape, x, *rest):
    return _channel_norm(shape, x, *rest[:4])


def _group_norm(shape, x, groups, weight=None, bias=None, *_):
    merge(x[1], [Axis(groups), Axis(size_of(x[1]) // groups)])
    return _channel_norm(shape, x, weight, bias)


def _layer_norm(shape, x, normalized, weight=None, bias=None, *_):
    for parameter in (weight, bias):
        for mine, other in zip(x[-len(normalized) :], parameter or [], strict=False):
            merge(mine, other)
    return x


def _view(shape, x, *_):
    return reshaped(x, list(shape))


def _permute(shape, x, order):
    return [x[i] for i in order]


def _transpose(shape, x, a=0, b=1):
    found = list(x)
    found[a], found[b] = found[b], found[a]
    return found


def _expand(shape, x, *_):
    places = [[]] * (len(shape) - len(x)) + x
    return [dim if size_of(dim) == n else [Axis(n, fixed=True)] for dim, n in zip(places, shape, strict=True)]


def _pool(shape, x, *_, **__):
    n_spatial = len(shape) - 2
    return [*x[:-n_spatial], *_fresh(shape[-n_spatial:])]


def _reduce(shape, x, dims=None, keepdim=False, **_):
    dims = range(len(x)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {d % len(x) for d in dims}
    return [([] if i in gone else dim) for i, dim in enumerate(x) if keepdim or i not in gone]


def _matmul(shape, a, b):
    if len(b) == 1:
        merge(a[-1], b[0])
        return a[:-1]
    merge(a[-1], b[-2])
    lead = _binary(None, a[:-2], b[:-2]) if len(b) > 2 or len(a) > 2 else []
    return [*lead, *a[-2:-1], b[-1]]


def _attention(shape, query, key, value, *_, **__):
    merge(query[-1], key[-1])
    merge(key[-2], value[-2])
    lead = _binary(None, _binary(None, query[:-2], key[:-2]), value[:-2])
    return [*lead, query[-2], value[-1]]


def _embedding(shape, weight, index, *_):
    fix(weight[0])
    return [*index, weight[1]]


def _recurrent(gates: int):
    """GRU and LSTM: a hidden unit is one unit through all gates, in recurrent weights both as row and as column, and through
    time. Of several layers' last states the last one's units are meant, as in h[-1]; reading others fails the check."""

    def rule(shape, x, state, parameters, biases, layers, dropout, train, both_ways, batch_first):
        per, ways = 4 if biases else 2, 2 if both_ways else 1
        if len(parameters) != per * layers * ways:
            raise UntraceableError("projected states are not traced")
        below = x[-1]
        for layer in range(layers):
            outs: list[Dim] = []
            for way in range(ways):
                first, *rest = parameters[per * (ways * layer + way) :][:per]
                unit: Dim = [Axis(size_of(rest[0][1]))]
                merge(below, first[1])
                merge(unit, rest[0][1])
                for tensor in (first, *rest):
                    merge([Axis(gates, fixed=True), *unit], tensor[0])
                outs.append(unit)
            below = _end_to_end(outs)
        states = [[Axis(layers * ways, fixed=True)], *([x[0 if batch_first else 1]] if len(x) == 3 else []), outs[-1]]
        return [[*x[:-1], below], *([states] * (2 if gates == 4 else 1))]

    return rule


def _end_to_end(dims: list[Dim]) -> Dim:
    if len(dims) == 1:
        return dims[0]
    whole = Axis(sum(map(size_of, dims)))
    for segment, dim in zip(cut(whole, [size_of(dim) for dim in dims]), dims, strict=True):
        merge([segment], dim)
    return [whole]


def _cat(shape, tensors, dim=0):
    dim %= len(tensors[0])
    found = list(tensors[0])
    for other in tensors[1:]:
        found = [p if i == dim else _binary(None, [p], [q])[0] for i, (p, q) in enumerate(zip(found, other, strict=True))]
    found[dim] = _end_to_end([tensor[dim] for tensor in tensors])
    return found


def _segments(x: list[Dim], dim: int, sizes: list[int]) -> list[list[Dim]]:
    """The tensor in pieces along one dimension."""
    axes = leaves(x[dim])
    if len(axes) != 1:
        fix(x[dim])
        parts = [Axis(size, fixed=True) for size in sizes]
    else:
        cut(axes[0], sizes)
        parts, have = [], list(axes[0].root().sum)
        for size in sizes:
            piece = [have.pop(0)]
            while sum(axis.root().size for axis in piece) < size:
                piece.append(have.pop(0))
            whole = piece[0]
            if len(piece) > 1:
                whole = Axis(size)
                whole.sum = tuple(piece)
            parts.append(whole)
    return [[*x[:dim], [part], *x[dim + 1 :]] for part in parts]


def _slice(shape, x, dim=0, start=None, end=None, step=1):
    dim, size = dim % len(x), size_of(x[dim % len(x)])
    start, end = (start or 0) % (size + 1), min(size if end is None else end if end >= 0 else size + end, size)
    if (start, end, step) == (0, size, 1):
        return x
    if step != 1 or all(axis.fixed for axis in leaves(x[dim])):
        fix(x[dim])
        return [*x[:dim], [Axis(shape[dim], fixed=True)], *x[dim + 1 :]]
    sizes = [n for n in (start, end - start, size - end) if n]
    return _segments(x, dim, sizes)[1 if start else 0]


def _split(shape, x, sizes, dim=0):
    dim, total = dim % len(x), size_of(x[dim % len(x)])
    if isinstance(sizes, int):
        sizes = [sizes] * (total // sizes) + ([total % sizes] if total % sizes else [])
    return _segments(x, dim, list(sizes))


def _chunk(shape, x, chunks, dim=0):
    return _split(shape, x, math.ceil(size_of(x[dim % len(x)]) / chunks), dim)


def _select(shape, x, dim, index):
    fix(x[dim])
    return [d for i, d in enumerate(x) if i != dim % len(x)]


def _unbind(shape, x, dim=0):
    fix(x[dim])
    return [_select(shape, x, dim, i) for i in range(size_of(x[dim]))]


def _made(shape, *_, **__):
    return _fresh(shape)


def _rules(rule: Callable, names: str) -> dict[Any, Callable]:
    return {getattr(aten, name): rule for name in names.split() if hasattr(aten, name)}


RULES: dict[Any, Callable] = {
    operator.getitem: lambda shape, x, index: x[index],
    **_rules(
        _same, "relu relu_ gelu silu silu_ tanh sigmoid elu elu_ leaky_relu leaky_relu_ hardtanh hardtanh_ hardswish softplus"
    ),
    **_rules(
        _same, "dropout dropout_ feature_dropout clone contiguous detach detach_ alias to _to_copy neg exp log sqrt rsqrt abs"
    ),
    **_rules(
        _same, "softmax log_softmax _softmax _log_softmax pow clamp clamp_min reciprocal square erf sin cos lift_fresh_copy"
    ),
    **_rules(_binary, "add add_ sub mul mul_ div maximum minimum"),
    **_rules(_linear, "linear"),
    **_rules(_conv, "conv1d conv2d conv3d"),
    **_rules(_batch_norm, "batch_norm _native_batch_norm_legit_no_training"),
    **_rules(_group_norm, "group_norm"),
    **_rules(_layer_norm, "layer_norm rms_norm"),
    **_rules(_view, "view reshape flatten unflatten _unsafe_view squeeze unsqueeze"),
    **_rules(_expand, "expand"),
    **_rules(_permute, "permute"),
    **_rules(_transpose, "transpose t"),
    **_rules(_pool, "max_pool1d max_pool2d avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d"),
    **_rules(_reduce, "mean sum amax amin"),
    **_rules(_matmul, "matmul bmm mm"),
    **_rules(_attention, "scaled_dot_product_attention"),
    **_rules(_embedding, "embedding"),
    **_rules(_recurrent(3), "gru"),
    **_rules(_recurrent(4), "lstm"),
    **_rules(_cat, "cat concat"),
    **_rules(_slice, "slice"),
    **_rules(_split, "split split_with_sizes"),
    **_rules(_chunk, "chunk"),
    **_rules(_select, "select"),
    **_rules(_unbind, "unbind"),
    **_rules(_made, "arange ones zeros full ones_like zeros_like"),
}
