"""Rules of the batched backend: one operation, on the stacked weights of a population.

Operations that dominate have a rule of their own; any other runs under `torch.func.vmap`.
"""

import copy
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from synthnet.engine.recurrent import recurrent
from synthnet.engine.stacks import (
    COLUMNS,
    IMAGES,
    LEADING,
    SHARED,
    Value,
    as_values,
    channels_last,
    columns,
    images,
    leading,
    replace_values,
)
from synthnet.errors import InputError
from synthnet.nets import step


class Call(NamedTuple):
    """What a rule reads beside its arguments: the module's own stacked tensors by local name, and whether BatchNorm learns."""

    n_nets: int
    module: nn.Module | None
    tensors: dict[str, Tensor]
    training: bool


def own_copy(module: nn.Module, training: bool) -> nn.Module:
    """A copy for one functional_call: that swaps tensors into the module, and worker threads must not share it.

    `training`: BatchNorm learns; nothing else does.
    """
    module = copy.deepcopy(module)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.train(training)
            part.num_batches_tracked = None  # an integer buffer: counted by nobody here
        if isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.0
            part.train()  # its fast path for evaluation has no derivative
    return module


def by_vmap(call: Call, function: Callable, *args, **kwargs) -> Any:
    """Any operation: directly while nothing depends on the net, else over the leading axis. Sizes are those of one net."""
    values = []
    replace_values((args, kwargs), values.append)
    if function in (getattr, torch.Tensor.size, torch.Tensor.dim):
        return function(leading(values[0], call.n_nets)[0], *args[1:], **kwargs)
    shared = all(value.form == SHARED for value in values)
    stacked = [value.data if shared else leading(value, call.n_nets) for value in values]

    def one_net(*tensors):
        given = iter(tensors)
        plain_args, plain_kwargs = replace_values((args, kwargs), lambda _: next(given))
        result = function(*plain_args, **plain_kwargs)
        if not isinstance(result, tuple):
            return result
        constant.update({place: part for place, part in enumerate(result) if not isinstance(part, Tensor)})
        return tuple(part for part in result if isinstance(part, Tensor))

    constant: dict[int, Any] = {}  # parts of a result that are no tensors, such as attention weights that nobody asked for
    result = as_values(one_net(*stacked), SHARED) if shared else as_values(vmap(one_net)(*stacked), LEADING)
    for place, part in sorted(constant.items()):
        result = (*result[:place], part, *result[place:])
    return result


def module_by_vmap(call: Call, *args, **kwargs) -> Any:
    if call.training and isinstance(call.module, nn.modules.batchnorm._BatchNorm):
        raise InputError(f"{call.module} cannot learn in the batched backend; use backend loop")
    module = own_copy(call.module, training=False)
    names = list(call.tensors)
    own = [Value(call.tensors[name], LEADING) for name in names]

    def apply(weights, *inputs, **settings):
        return functional_call(module, dict(zip(names, weights, strict=True)), inputs, settings)

    return by_vmap(call, apply, own, *args, **kwargs)


def _elementwise(function: Callable) -> Callable:
    def rule(call: Call, value: Value, **kwargs) -> Value:
        return Value(function(value.data, **kwargs), value.form)

    return rule


def _activation_module(call: Call, value: Value) -> Value:
    return Value(call.module(value.data), value.form)


def _binary(function: Callable) -> Callable:
    def rule(call: Call, a: Any, b: Any) -> Value:
        if not isinstance(b, Value) and isinstance(a, Value):
            return Value(function(a.data, b), a.form)
        alike = isinstance(a, Value) and isinstance(b, Value) and a.form == b.form and a.data.ndim == b.data.ndim
        return Value(function(a.data, b.data), a.form) if alike else by_vmap(call, function, a, b)

    return rule


def _item(call: Call, value: Any, index: Any) -> Any:
    """A part of a tuple as it is; of a tensor, along its own dims."""
    if isinstance(value, tuple) and not isinstance(value, Value):
        return value[index]
    if value.form == LEADING:
        return Value(value.data[(slice(None), *(index if isinstance(index, tuple) else (index,)))], LEADING)
    return by_vmap(call, operator.getitem, value, index)


def _flatten(call: Call, value: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    if (start_dim, end_dim) != (1, -1) or value.form == SHARED:
        return by_vmap(call, torch.flatten, value, start_dim, end_dim)
    if value.form == IMAGES:  # a view of the net and channel axes, then one copy
        return Value(value.data.unflatten(1, (call.n_nets, -1)).permute(1, 2, 3, 4, 0).flatten(1, 3), COLUMNS)
    return value if value.form == COLUMNS else Value(leading(value, call.n_nets).flatten(2).transpose(1, 2), COLUMNS)


def _linear(call: Call, value: Value) -> Value:
    weight, bias = call.tensors["weight"], call.tensors.get("bias")
    if bias is None:
        bias = weight.new_zeros(weight.shape[:2])
    if value.form == SHARED and value.data.ndim == 2:
        rows = torch.addmm(bias.reshape(-1, 1), weight.flatten(0, 1), value.data.t())
        return Value(rows.unflatten(0, weight.shape[:2]), COLUMNS)
    if value.form == COLUMNS or (value.data.ndim == 3 and value.form == LEADING):
        return Value(torch.baddbmm(bias.unsqueeze(-1), weight, columns(value, call.n_nets)), COLUMNS)
    x = leading(value, call.n_nets)
    out = torch.baddbmm(bias.unsqueeze(1), x.flatten(1, -2), weight.transpose(1, 2))
    return Value(out.unflatten(1, x.shape[1:-1]), LEADING)


def _conv2d(call: Call, value: Value) -> Value:
    module, weight, bias = call.module, call.tensors["weight"], call.tensors.get("bias")
    if module.padding_mode != "zeros":
        return module_by_vmap(call, value)
    one_input = value.form == SHARED and module.groups == 1  # every net's channels read the same image
    x = channels_last(value.data) if one_input else images(value, call.n_nets)
    out = F.conv2d(
        x,
        channels_last(weight.flatten(0, 1)),
        bias.flatten() if bias is not None else None,
        module.stride,
        module.padding,
        module.dilation,
        1 if one_input else call.n_nets * module.groups,
    )
    return Value(channels_last(out), IMAGES)


def _pool(call: Call, value: Value) -> Value:
    return Value(call.module(value.data), value.form) if value.form in (SHARED, IMAGES) else module_by_vmap(call, value)


def _group_norm(call: Call, value: Value) -> Value:
    if value.form != IMAGES:
        return module_by_vmap(call, value)
    # torch's kernel for channels-last walks group by group; here sums run along all channels of all nets at once
    x = value.data.permute(0, 2, 3, 1).flatten(1, 2)  # [example place channel], a view
    groups, per_group = call.n_nets * call.module.num_groups, call.module.num_channels // call.module.num_groups

    def of_groups(of_channels: Tensor) -> Tensor:
        return of_channels.unflatten(1, (groups, per_group)).mean(2).repeat_interleave(per_group, 1)

    mean = of_groups(x.mean(1))
    scale = (of_groups((x - mean.unsqueeze(1)).square().mean(1)) + call.module.eps).rsqrt()
    if "weight" in call.tensors:
        scale = scale * call.tensors["weight"].flatten()
    shift = -mean * scale
    if "bias" in call.tensors:
        shift = shift + call.tensors["bias"].flatten()
    out = torch.addcmul(shift.unsqueeze(1), x, scale.unsqueeze(1))
    return Value(out.unflatten(1, value.data.shape[2:]).permute(0, 3, 1, 2), IMAGES)


def _batch_norm(call: Call, value: Value) -> Value:
    module = call.module
    if value.form not in (IMAGES, COLUMNS) or module.momentum is None or not module.track_running_stats:
        return module_by_vmap(call, value)
    names = ("running_mean", "running_var", "weight", "bias")
    mean, var, weight, bias = (call.tensors[name].flatten() if name in call.tensors else None for name in names)
    x = value.data if value.form == IMAGES else value.data.flatten(0, 1).unsqueeze(0)
    if call.training:  # `flatten` is a view of the learners' own tensors, so the running statistics move
        out = F.batch_norm(x, mean, var, weight, bias, True, module.momentum, module.eps)
    else:  # written out, because weights that a policy makes need gradients of the statistics too
        scale = (var + module.eps).rsqrt() * (1 if weight is None else weight)
        shift = (0 if bias is None else bias) - mean * scale
        ones = (1,) * (x.ndim - 2)
        out = x * scale.view(1, -1, *ones) + shift.view(1, -1, *ones)
    return Value(out if value.form == IMAGES else out.view_as(value.data), value.form)


def _layer_norm(call: Call, value: Value) -> Value:
    x, shape = leading(value, call.n_nets), call.module.normalized_shape
    out = F.layer_norm(x, shape, eps=call.module.eps)
    ones = (1,) * (x.ndim - 1 - len(shape))
    for name, apply in (("weight", torch.mul), ("bias", torch.add)):
        if name in call.tensors:
            out = apply(out, call.tensors[name].view(call.n_nets, *ones, *shape))
    return Value(out, LEADING)


def _embedding(call: Call, value: Value) -> Value:
    if value.form != SHARED:
        return module_by_vmap(call, value)
    return Value(call.tensors["weight"][:, value.data], LEADING)


def _attention(call: Call, query: Value, key: Value, value: Value, **kwargs) -> Value:
    if {query.form, key.form, value.form} != {LEADING} or isinstance(kwargs.get("attn_mask"), Value):
        return by_vmap(call, F.scaled_dot_product_attention, query, key, value, **kwargs)
    parts = (part.data.flatten(0, 1) for part in (query, key, value))
    return Value(F.scaled_dot_product_attention(*parts, **kwargs).unflatten(0, query.data.shape[:2]), LEADING)


def _same(call: Call, value: Value) -> Value:
    return value


RULES: dict[Any, Callable] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.GRU: recurrent,
    nn.LSTM: recurrent,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.Flatten: lambda call, value: _flatten(call, value, call.module.start_dim, call.module.end_dim),
    torch.flatten: _flatten,
    "flatten": _flatten,
    operator.getitem: _item,
    F.scaled_dot_product_attention: _attention,
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), _pool),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout2d), _same),
    **dict.fromkeys((nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.ELU), _activation_module),
    **{f: _elementwise(f) for f in (torch.relu, F.relu, torch.tanh, torch.sigmoid, F.gelu, F.silu, step)},
    **{name: _elementwise(getattr(torch, name)) for name in ("relu", "tanh", "sigmoid")},
    **{f: _binary(f) for f in (operator.add, operator.mul, operator.sub, torch.add, torch.mul)},
}
