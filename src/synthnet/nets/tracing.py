"""Tracing: from any module and an example input to the axes of its parameters, through torch.export's graph.

Each rule says which dimensions an operation makes one and the same. What has no rule is refused by name; nothing is guessed.
"""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from synthnet.nets.axes import Axis, Dim, UntraceableError, fix
from synthnet.nets.rules import RULES
from synthnet.nets.start import draw_init, init_scale
from synthnet.nets.symmetry import Symmetry
from synthnet.nets.weights import WeightSpec

EXPORT_LOG = logging.getLogger("torch.fx.experimental.symbolic_shapes")


def parameter_axes(module: nn.Module, example: Tensor) -> dict[str, list[Dim]]:
    """Per tensor of the state dict, its dimensions as axes, in order of the graph; `example` [example …] is any valid input.

    Tied tensors share their axes. Raises: UntraceableError, naming the operation that is not understood.
    """
    module = _plain(module)
    level = EXPORT_LOG.level
    EXPORT_LOG.setLevel(logging.ERROR)  # it logs and prints the graph of what it cannot trace; one notice is enough
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights that a recurrent layer keeps in a list beside
            program = torch.export.export(module, (example,), strict=False)
    except Exception as error:  # torch.export raises many kinds for control flow; all mean the same here
        raise UntraceableError(f"cannot trace {type(module).__name__}: {str(error).splitlines()[0][:200]}") from error
    finally:
        EXPORT_LOG.setLevel(level)
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    env: dict[fx.Node, Any] = {}
    found: dict[str, list[Dim]] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            name = names.get(node.name)
            env[node] = [[Axis(n, fixed=name is None)] for n in node.meta["val"].shape]
            if name is not None:
                found[name] = env[node]
        elif node.op == "call_function":
            env[node] = _apply(node, env, type(module).__name__)
        elif node.op == "output":
            for dims in fx.node.map_arg(node.args[0], env.__getitem__):
                for dim in dims:
                    fix(dim)
    unused = {names[node.name] for node in program.graph.nodes if node.name in names and not node.users}
    found = {name: dims for name, dims in found.items() if name not in unused}
    return _with_tied(module, found)


def traced_symmetry(
    module: nn.Module, spec: WeightSpec, example: Tensor, outputs: Callable[[Tensor, Tensor], Tensor]
) -> Symmetry:
    """The symmetry of a module, checked: permuting the units it found must not change `outputs(flat, inputs)`.

    Raises: UntraceableError where an operation has no rule, or the check fails.
    """
    symmetry = Symmetry.of_axes(spec, parameter_axes(module, example))
    draw = torch.Generator().manual_seed(0)
    flat = draw_init(spec, draw)[None]  # one net: of a large one every copy counts
    flat += torch.rand(flat.shape, generator=draw).mul_(0.1).mul_(init_scale(spec))
    inputs = torch.randn(example.shape, generator=draw) if example.is_floating_point() else example
    before = outputs(flat, inputs)

    def unchanged(changed: Tensor) -> bool:
        return torch.allclose(outputs(changed, inputs), before, rtol=1e-4, atol=1e-5)

    if not unchanged(symmetry.permute(flat, symmetry.random(draw))):
        raise UntraceableError(f"cannot trace {type(module).__name__}: permuting what look like units changes its outputs")
    free = set(symmetry.groups) - set(symmetry.inner) - set(symmetry.inner.values())
    factors = {group: 0.5 + 1.5 * torch.rand((1, symmetry.groups[group]), generator=draw) for group in symmetry.groups}
    scalable = frozenset(group for group in free if unchanged(symmetry.rescale(flat, group, factors[group])))
    return replace(symmetry, scalable=scalable)


def _plain(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode in which torch's multi-head attention is written out, its fused projection cut in three."""
    module = copy.deepcopy(module).eval()
    for part in module.modules():
        if isinstance(part, nn.MultiheadAttention):
            part.forward = _attention_forward(part)
    return module


def _attention_forward(part: nn.MultiheadAttention) -> Callable:
    def forward(query, key, value, key_padding_mask=None, need_weights=True, attn_mask=None, **_):
        if key_padding_mask is not None or attn_mask is not None or part.bias_k is not None or part.add_zero_attn:
            raise UntraceableError("attention with masks or added keys is not traced")
        if part.in_proj_weight is not None:
            weights = part.in_proj_weight.split(part.embed_dim)
        else:
            weights = (part.q_proj_weight, part.k_proj_weight, part.v_proj_weight)
        biases = part.in_proj_bias.split(part.embed_dim) if part.in_proj_bias is not None else (None,) * 3
        heads = []
        for x, weight, bias in zip((query, key, value), weights, biases, strict=True):
            x = x if part.batch_first else x.transpose(0, 1)
            heads.append(nn.functional.linear(x, weight, bias).unflatten(-1, (part.num_heads, -1)).transpose(1, 2))
        out = part.out_proj(nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return (out if part.batch_first else out.transpose(0, 1)), None

    return forward


def _with_tied(module: nn.Module, found: dict[str, list[Dim]]) -> dict[str, list[Dim]]:
    """Axes for every name of the state dict: tied names share them; what the graph does not use is fixed."""
    state = module.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if name not in found:
            twin = next((other for other in found if state.get(other) is tensor), None)
            found[name] = found[twin] if twin else [[Axis(n, fixed=True)] for n in tensor.shape]
    return {name: found[name] for name in sorted(state, key=list(found).index)}


def _apply(node: fx.Node, env: dict[fx.Node, Any], owner: str) -> Any:
    rule = RULES.get(node.target) or RULES.get(getattr(node.target, "overloadpacket", None))
    if rule is None:
        raise UntraceableError(f"cannot trace {owner}: no rule for {node.target} ({node.name})")
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: env[n])
    shape = node.meta["val"].shape if isinstance(node.meta.get("val"), Tensor) else None
    try:
        return rule(shape, *args, **kwargs)
    except UntraceableError as error:
        raise UntraceableError(f"cannot trace {owner}: {node.target} ({node.name}): {error}") from error
