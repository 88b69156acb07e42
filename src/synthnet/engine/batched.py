"""The batched backend: a module's operations, run once for the weights of a whole population.

The module is traced by torch.fx; each operation follows its rule in `rules.py`.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from synthnet.engine.rules import RULES, Call, by_vmap, module_by_vmap
from synthnet.engine.stacks import LEADING, SHARED, Value, leading
from synthnet.errors import InputError


class Batched:
    """A traced module that takes stacked weights. Raises: InputError when torch.fx cannot trace it."""

    def __init__(self, module: nn.Module):
        try:
            graph = fx.symbolic_trace(module).graph
        except Exception as error:  # fx raises many kinds for control flow; all mean the same here
            raise InputError(f"cannot trace {type(module).__name__}: {error}") from error
        self.modules = dict(module.named_modules())
        _pool_before_relu(graph, self.modules)
        self.nodes = list(graph.nodes)
        leaves = {node.target for node in self.nodes if node.op == "call_module"}
        names = list(module.state_dict())
        self.owned = {leaf: [name for name in names if name.startswith(f"{leaf}.")] for leaf in leaves}

    def __call__(
        self,
        tensors: dict[str, Tensor],
        inputs: Tensor,
        own_inputs: bool = False,
        training: bool = False,
        watch: Callable[[str, nn.Module, Callable[[dict[str, Tensor]], Value]], None] | None = None,
    ) -> Tensor:
        """Outputs [net example …] for tensors [net *shape] by name and inputs [example …], or own ones [net example …].

        `training`: BatchNorm reads the batch and moves its running statistics in place. `watch(name, module, again)` is called
        at every module, and `again(tensors)` gives what it would put out with other tensors, from the same inputs.
        """
        n_nets, env = len(next(iter(tensors.values()))), {}
        for node in self.nodes:
            if node.op == "placeholder":
                env[node] = Value(inputs, LEADING if own_inputs else SHARED)
            elif node.op == "output":
                return leading(env[node.args[0]], n_nets)
            elif node.op == "get_attr":
                env[node] = Value(tensors[node.target], LEADING)
            else:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
                module = self.modules[node.target] if node.op == "call_module" else None
                names = self.owned[node.target] if module is not None else ()
                rule = _rule_of(node, module)

                def run(tensors, module=module, names=names, rule=rule, args=args, kwargs=kwargs, node=node):
                    held = {name[len(node.target) + 1 :]: tensors[name] for name in names if name in tensors}
                    return rule(Call(n_nets, module, held, training), *args, **kwargs)

                env[node] = run(tensors)
                if watch and module is not None:
                    watch(node.target, module, run)
        raise InputError("the traced module returns nothing")


def _rule_of(node: fx.Node, module: nn.Module | None) -> Callable[..., Any]:
    if module is not None:
        return RULES.get(type(module), module_by_vmap)
    if node.target in RULES:
        return RULES[node.target]
    function = getattr(torch.Tensor, node.target) if node.op == "call_method" else node.target
    return lambda call, *args, **kwargs: by_vmap(call, function, *args, **kwargs)


def _pool_before_relu(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """relu then max-pool -> max-pool then relu: the same values and gradients, with a quarter of the work in relu."""
    for node in list(graph.nodes):
        if not (node.op == "call_module" and isinstance(modules[node.target], nn.MaxPool2d)):
            continue
        relu = node.args[0]
        is_relu = relu.target in (torch.relu, F.relu, "relu") or (
            relu.op == "call_module" and isinstance(modules[relu.target], nn.ReLU)
        )
        if is_relu and len(relu.users) == 1:
            source = relu.args[0]
            node.replace_all_uses_with(relu)
            node.args = (source,)
            relu.args = (node, *relu.args[1:])
            node.append(relu)
