"""The layer chain of a module: Linear layers with element-wise activations between them, found by tracing.

Symmetry, batched evaluation and the identity measures all read a chain; a general tracer can produce more than chains later.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from synthnet.nets.axes import UntraceableError


def step(x: Tensor) -> Tensor:
    """1 above 0, else 0. It has no gradient; backwards it passes as half a ramp between −1 and 1 (straight through: Bengio,
    Léonard and Courville 2013, arXiv 1308.3432)."""
    ramp = 0.5 * x.clamp(-1, 1)
    return (x > 0).to(x) + (ramp - ramp.detach())


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "silu": F.silu,
    "step": step,
}
_MODULES = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.GELU: "gelu", nn.SiLU: "silu"}
_FUNCTIONS = {torch.relu: "relu", F.relu: "relu", torch.tanh: "tanh", torch.sigmoid: "sigmoid", F.gelu: "gelu", F.silu: "silu"}
_FUNCTIONS |= {step: "step"}
_NEUTRAL_MODULES = (nn.Identity, nn.Dropout, nn.Flatten)


@dataclass(frozen=True)
class Layer:
    """One Linear layer: tensor names (bias may be absent), sizes, and the activation that follows (None after the last)."""

    weight: str
    bias: str | None
    n_in: int
    n_out: int
    activation: str | None


@dataclass(frozen=True)
class Chain:
    layers: tuple[Layer, ...]

    @property
    def depth(self) -> int:
        """The number of Linear layers."""
        return len(self.layers)

    @property
    def homogeneous(self) -> bool:
        """Whether every hidden activation is positively homogeneous (ReLU), so units can be rescaled freely."""
        return all(layer.activation in ("relu", None) for layer in self.layers)


def trace(module: nn.Module) -> Chain:
    """The chain of a module whose forward is Linear layers and element-wise activations.

    Raises: UntraceableError, naming the operation, for anything else.
    """
    try:
        graph = fx.symbolic_trace(module).graph
    except Exception as error:  # fx raises many kinds for control flow; all mean the same here
        raise UntraceableError(f"cannot trace {type(module).__name__}: {error}") from error
    modules, layers = dict(module.named_modules()), []
    for node in graph.nodes:
        if node.op != "output" and len(node.users) != 1:
            raise UntraceableError(f"cannot trace {type(module).__name__}: {node.name} feeds {len(node.users)} operations")
        if node.op in ("placeholder", "output"):
            continue
        _append(layers, node, modules, type(module).__name__)
    names = [layer.weight for layer in layers]
    if not layers or layers[-1].activation is not None or len(set(names)) != len(names):
        raise UntraceableError(f"cannot trace {type(module).__name__}: expected distinct Linear layers, the last one bare")
    owned = {name for layer in layers for name in (layer.weight, layer.bias) if name}
    if unread := sorted(set(module.state_dict()) - owned):
        raise UntraceableError(f"cannot trace {type(module).__name__}: {unread} belong to no Linear layer of the chain")
    return Chain(tuple(layers))


def _append(layers: list[Layer], node: fx.Node, modules: dict[str, nn.Module], owner: str) -> None:
    target = modules[node.target] if node.op == "call_module" else node.target
    if node.op == "call_module" and isinstance(target, nn.Linear):
        if layers and layers[-1].activation is None:
            raise UntraceableError(f"cannot trace {owner}: no activation before {node.target}")
        bias = f"{node.target}.bias" if target.bias is not None else None
        layers.append(Layer(f"{node.target}.weight", bias, target.in_features, target.out_features, None))
        return
    activation = _activation(node, target)
    if activation is not None and layers and layers[-1].activation is None:
        layers[-1] = Layer(layers[-1].weight, layers[-1].bias, layers[-1].n_in, layers[-1].n_out, activation)
        return
    if node.op == "call_module" and isinstance(target, _NEUTRAL_MODULES):
        return
    flatten = (node.op == "call_method" and target == "flatten") or (node.op == "call_function" and target is torch.flatten)
    if flatten and not layers:
        return
    raise UntraceableError(f"cannot trace {owner}: {node.format_node()} is not a Linear layer or element-wise activation")


def _activation(node: fx.Node, target) -> str | None:
    if node.op == "call_module":
        if isinstance(target, nn.GELU) and target.approximate != "none":
            return None
        return _MODULES.get(type(target))
    if len(node.args) != 1 or any(value for key, value in node.kwargs.items() if key != "inplace"):
        return None
    if node.op == "call_method":
        return target if target in ("relu", "tanh", "sigmoid") else None
    return _FUNCTIONS.get(target)
