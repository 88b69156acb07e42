"""Many weight sets of one architecture at once: outputs as functions of flat weights.

Backends give the same numbers to 1e-5: `batched` (our own), `vmap` (torch.func over functional_call) and `loop`. No module is
ever mutated.
"""

import copy
import hashlib
from collections.abc import Callable
from functools import cached_property, lru_cache

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, vmap
from torch.utils.flop_counter import FlopCounterMode

from synthnet.engine.batched import Batched
from synthnet.engine.objective import CLASSES, Objective
from synthnet.engine.rules import own_copy
from synthnet.errors import InputError
from synthnet.nets import Arch, Axis, Chain, Symmetry, UntraceableError, WeightSpec, asked, draw_init, trace, traced_symmetry

# an operation that vmap can only run net by net is slow, not wrong; the plan measures it, so there is nothing to warn about
torch._C._functorch._set_vmap_fallback_warning_enabled(False)

ACTIVATION_NAMES = (
    "relu",
    "tanh",
    "sigmoid",
    "gelu",
    "silu",
    "elu",
    "leaky_relu",
    "leakyrelu",
    "softplus",
    "hardtanh",
    "gru",
    "lstm",
)
BACKENDS = ("batched", "vmap", "loop")


def traced(find: Callable[["Network"], object]) -> cached_property:
    """A cached property that networks of one architecture share, whatever task they are for: tracing is slow."""
    return cached_property(lambda net: find(net) if net.original is None else getattr(net.original, find.__name__))


class Network:
    """An architecture prepared for population work: its module (without storage), spec, and what tracing found; `task`: the
    name of the task that it is for, where that is known; `objective`: what it is judged by there."""

    def __init__(self, module: nn.Module | None, example: Tensor | None = None, arch: Arch | None = None):
        """`example` [example …]: inputs that tracing may use; not needed for chains and for networks that say `n_inputs`.
        `arch`: where its unit groups were recorded, so that nothing is traced; then it may do without a module."""
        self.task: str | None = None
        self.original: Network | None = None
        self.objective, self.recorded = CLASSES, arch if arch is not None and arch.traced else None
        n_inputs = getattr(module, "n_inputs", None)
        self.example = torch.zeros(2, n_inputs) if example is None and n_inputs else example
        self._module = copy.deepcopy(module).eval().to("meta") if module is not None else None
        self.spec = self.recorded.spec() if self.recorded else WeightSpec.of_module(self._module)
        self._checked: dict[tuple, tuple[str, ...]] = {}
        self._sizes: dict[tuple, tuple[float, float]] = {}

    @property
    def module(self) -> nn.Module:
        """Raises: InputError for a network that is known by its recorded tensors and unit groups alone."""
        if self._module is None:
            raise InputError(f"{self.recorded} is known by its tensors alone, and this runs it: pass --task FILE.py:NAME")
        return self._module

    @property
    def n_classes(self) -> int:
        """How many numbers it puts out for an example."""
        return self.recorded.n_outputs if self.recorded else self.module.n_classes

    @cached_property
    def has_statistics(self) -> bool:
        """Whether it has running statistics (BatchNorm), which training takes from batches."""
        return any(tensor.name.endswith("running_var") for tensor in self.spec.floats)

    def of_task(self, task: str, objective: Objective = CLASSES) -> "Network":
        """The same network for a named task."""
        same = copy.copy(self)
        same.task, same.original, same.objective = task, self, objective
        return same

    @traced
    def chain(self) -> Chain | None:
        if self._module is None:
            return None
        try:
            return trace(self.module)
        except UntraceableError:
            return None

    @traced
    def symmetry(self) -> Symmetry:
        """The unit groups. Raises: UntraceableError, naming the operation, where they cannot be derived."""
        if self.recorded:
            return self.recorded.symmetry()
        if self.chain is not None:
            return Symmetry.of_chain(self.spec, self.chain)
        if self.example is None:
            raise UntraceableError(f"tracing {type(self.module).__name__} needs an example of its inputs")
        module = own_copy(self.module, training=False).to_empty(device="cpu")
        return traced_symmetry(module, self.spec, self.example, lambda flat, inputs: self.logits(flat, inputs, "loop"))

    @property
    def alignment(self) -> Symmetry:
        """The unit groups, or, where they cannot be derived, none: then nets are compared as they are."""
        try:
            return self.symmetry
        except UntraceableError:
            return Symmetry.of_axes(self.spec, {t.name: [[Axis(n, fixed=True)] for n in t.shape] for t in self.spec.floats})

    @traced
    def batched(self) -> Batched | None:
        """The traced module, or None where torch.fx cannot trace it."""
        try:
            return Batched(self.module)
        except InputError:
            return None

    @cached_property
    def name(self) -> str:
        """A name that changes with the tensors or the operations."""
        description = (
            repr(self.spec) + repr(self.module) + str([n.format_node() for n in self.batched.nodes] if self.batched else "")
        )
        return f"{type(self.module).__name__}-{hashlib.sha256(description.encode()).hexdigest()[:12]}"

    def logits(self, flat: Tensor, inputs: Tensor, backend: str = "auto", own_inputs: bool = False) -> Tensor:
        """Logits [net example class] of weights [net weights] on inputs [example …], or own ones [net example …].

        Backend: batched, vmap, loop, or auto: the first of them that serves the module.
        """
        return self.logits_of(self.spec.unflatten(flat), inputs, backend, own_inputs)

    def logits_of(
        self,
        tensors: dict[str, Tensor],
        inputs: Tensor,
        backend: str = "auto",
        own_inputs: bool = False,
        training: bool = False,
    ) -> Tensor:
        """As `logits`, for stacked tensors [net *shape] by name. `training`: BatchNorm learns, in place; nothing else does."""
        if backend == "auto":
            backend = self.backends(inputs, own_inputs)[0]
        if backend == "batched":
            return self.batched(tensors, inputs, own_inputs, training)
        module = own_copy(self.module, training)
        call = lambda weights, x: functional_call(module, weights, (x,))  # noqa: E731
        if backend == "vmap":
            return vmap(call, in_dims=(0, 0 if own_inputs else None))(tensors, inputs)
        if backend == "loop":
            nets = [
                dict(zip(tensors, net, strict=True))
                for net in zip(*(value.unbind(0) for value in tensors.values()), strict=True)
            ]
            return torch.stack([call(net, inputs[i] if own_inputs else inputs) for i, net in enumerate(nets)])
        raise ValueError(f"backend must be auto, batched, vmap or loop, got {backend!r}")

    @torch.no_grad()
    def backends(self, inputs: Tensor, own_inputs: bool = False) -> tuple[str, ...]:
        """The backends that serve this module on such inputs, fastest in general first: those that agree with the loop."""
        key = (tuple(inputs.shape[2 if own_inputs else 1 :]), own_inputs)
        if key not in self._checked:
            draw = torch.Generator().manual_seed(0)
            few = self.spec.unflatten(torch.stack([draw_init(self.spec, draw) for _ in range(2)]).to(inputs.device))
            x = inputs[:2, :3] if own_inputs else inputs[:3]
            x = x.expand(2, *x.shape[1:]) if own_inputs else x
            x = x.float() if x.is_floating_point() else x  # whatever they compute in later: rounding must not decide
            expected = self.logits_of(few, x, "loop", own_inputs)
            self._checked[key] = tuple(name for name in BACKENDS if self._agrees(name, few, x, own_inputs, expected))
        return self._checked[key]

    def _agrees(self, backend: str, tensors: dict[str, Tensor], inputs: Tensor, own_inputs: bool, expected: Tensor) -> bool:
        if backend == "loop":
            return True
        if backend == "batched" and self.batched is None:
            return False
        try:
            found = self.logits_of(tensors, inputs, backend, own_inputs)
        except Exception:  # whatever an operation without a rule raises: another backend serves the module
            return False
        return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True)

    def activations(self, inputs: Tensor) -> tuple[float, float]:
        """What one net makes of one example of `inputs` [example …]: the numbers its modules put out, and its FLOPs."""
        key = (tuple(inputs.shape[1:]), inputs.dtype)
        if key not in self._sizes:
            self._sizes[key] = self._count(torch.empty((2, *inputs.shape[1:]), dtype=inputs.dtype, device="meta"))
        return self._sizes[key]

    def _count(self, two: Tensor) -> tuple[float, float]:
        sizes: list[int] = []
        module = own_copy(self.module, training=False)
        for part in module.modules():
            if not list(part.children()):
                part.register_forward_hook(lambda _, __, out: sizes.append(out.numel() if isinstance(out, Tensor) else 0))
        try:
            with FlopCounterMode(display=False) as counter:
                module(two)
        except RuntimeError:  # control flow that reads values: guess from the weights
            return self.spec.n_weights, 2.0 * self.spec.n_weights
        return sum(sizes) / 2, counter.get_total_flops() / 2


class Nets:
    """Many nets at once, as a reward of the user's own meets them: `nets(x)` gives their outputs [net example out…].

    weights: name -> [net …]; spec: numbers that say which variant of the task each is for [net number], or None.
    """

    def __init__(self, network: Network, flat: Tensor, spec: Tensor | None = None):
        self.network, self.weights = network, network.spec.unflatten(flat)
        self.spec = spec if spec is None else spec.to(flat.device)
        self.device, self._n = flat.device, len(flat)

    def __len__(self) -> int:
        return self._n

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs for inputs [example …], one batch for all, or [net example …], each its own."""
        own = x.ndim == self.network.example.ndim + 1
        return self.network.logits_of(self.weights, x.to(self.device), own_inputs=own)


@lru_cache(maxsize=256)
def _prepared(arch: Arch, runs: bool) -> Network:  # `runs`: one that does must not be taken for one that is but recorded
    return Network(arch.skeleton() if runs else None, arch.example, arch)


@lru_cache(maxsize=256)
def network_of(arch: Arch, task: str | None = None, objective: Objective = CLASSES) -> Network:
    """The prepared network of an architecture, for a task (cached: tracing happens once)."""
    net = _prepared(arch, not arch.traced or arch.module is not None)
    return net if task is None else net.of_task(task, objective)


def arch_of(module: nn.Module, example: Tensor) -> Arch:
    """The architecture of a module of the user's own, as data: tensors, unit groups, inputs `example` [example …], outputs.

    Raises: InputError where the module does not run on the example, or gives other outputs for the same inputs.
    """
    net, name = Network(module, example), type(module).__name__
    live = copy.deepcopy(module).eval()
    with torch.no_grad():
        what = f"{name} does not run on inputs of shape {list(example.shape)}"
        outputs, again, alone = (asked(what, live, x) for x in (example, example, example[:1]))
    if not isinstance(outputs, Tensor) or outputs.shape[:1] != example.shape[:1]:
        came = list(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise InputError(f"{name} should give outputs [example …] for {len(example)} examples, got {came}")
    if not net.spec.floats:
        raise InputError(f"{name} has no weights")
    if outputs.isnan().any():
        raise InputError(f"{name} gives NaN for inputs of shape {list(example.shape)}")
    if not torch.equal(outputs, again):
        raise InputError(f"{name} gives other outputs for the same inputs in eval mode: it must not be random")
    if not torch.allclose(outputs[:1], alone, rtol=1e-3, atol=1e-4):
        raise InputError(f"{name} gives an example other outputs in another batch: examples must not depend on one another")
    try:
        recorded = net.symmetry.recorded()
    except UntraceableError as error:
        recorded = {"untraced": str(error)[:200]}
    nodes = net.batched.nodes if net.batched else []
    recorded |= {"activations": sorted({found for found in map(_activation, [*module.modules(), *nodes]) if found})}
    return Arch.of_traced(module, net.spec, example, outputs[0].numel(), net.name, recorded)


def _activation(what: fx.Node | nn.Module) -> str | None:
    """The name of an activation that a node calls or a module is, if it is one of those known."""
    target = type(what).__name__ if isinstance(what, nn.Module) else getattr(what.target, "__name__", what.target)
    name = str(target).lower()
    return name if name in ACTIVATION_NAMES else None
