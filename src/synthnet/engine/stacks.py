"""The forms in which values of a population travel through the batched backend; no single layout is fast for all of them.

shared   [example …]                   the same for every net: inputs, before any weight has touched them
leading  [net example …]               the plain stacked form
columns  [net feature example]         units are rows, examples are columns: layers are matrix products, the first a single one
images   [example net·channel h w]     channels-last in memory: a convolution has one group per net, pooling runs along channels
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

SHARED, LEADING, COLUMNS, IMAGES = "shared", "leading", "columns", "images"
CHANNELS_LAST = torch.channels_last


class Value(NamedTuple):
    """A tensor of the population and the form it is in."""

    data: Tensor
    form: str


def leading(value: Any, n_nets: int) -> Any:
    """The value as [net example …]; anything that is no Value as it is."""
    if not isinstance(value, Value) or value.form == LEADING:
        return value.data if isinstance(value, Value) else value
    if value.form == SHARED:
        return value.data.expand(n_nets, *value.data.shape)
    if value.form == COLUMNS:
        return value.data.transpose(1, 2)
    return value.data.unflatten(1, (n_nets, -1)).transpose(0, 1)


def columns(value: Value, n_nets: int) -> Tensor:
    return value.data if value.form == COLUMNS else leading(value, n_nets).transpose(1, 2)


def images(value: Value, n_nets: int) -> Tensor:
    if value.form == IMAGES:
        return value.data
    return channels_last(leading(value, n_nets).transpose(0, 1).flatten(1, 2))


def channels_last(x: Tensor) -> Tensor:
    """[example channel h w] with channels last in memory. Of one channel only the strides tell, and torch leaves them alone."""
    x = x.contiguous(memory_format=CHANNELS_LAST)
    if x.shape[1] > 1:
        return x
    height, width = x.shape[2:]
    return x.contiguous().as_strided(x.shape, (height * width, 1, width, 1))


def replace_values(tree: Any, change: Callable[[Value], Any]) -> Any:
    """The tree of arguments with every Value replaced."""
    if isinstance(tree, Value):
        return change(tree)
    if isinstance(tree, list | tuple):
        return type(tree)(replace_values(part, change) for part in tree)
    if isinstance(tree, dict):
        return {name: replace_values(part, change) for name, part in tree.items()}
    return tree


def as_values(result: Any, form: str) -> Any:
    if isinstance(result, Tensor):
        return Value(result, form)
    return tuple(as_values(part, form) for part in result) if isinstance(result, list | tuple) else result
