"""Many weight sets of one architecture at once: logits, loss and accuracy as functions of flat weights.

Backends give the same numbers to 1e-5: `batched` (our own), `vmap` (torch.func over functional_call) and `loop`. No module is
ever mutated. Scoring follows a plan: how many nets at a time, on how many threads.
"""

import copy
import hashlib
from collections.abc import Callable
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils.flop_counter import FlopCounterMode

from synthnet.engine.batched import Batched
from synthnet.engine.plan import CACHE_BYTES, Job, Plan, choose
from synthnet.engine.rules import own_copy
from synthnet.engine.stacks import leading
from synthnet.errors import InputError
from synthnet.nets import Arch, Chain, Symmetry, UntraceableError, UserArch, WeightSpec, draw_init, trace, traced_symmetry
from synthnet.workers import spread

# an operation that vmap can only run net by net is slow, not wrong; the plan measures it, so there is nothing to warn about
torch._C._functorch._set_vmap_fallback_warning_enabled(False)

BLOCKS = (512, 256, 128, 64)  # examples scored at a time: as many as leave room in the cache for eight nets
BACKENDS = ("batched", "vmap", "loop")


def traced(find: Callable[["Network"], object]) -> cached_property:
    """A cached property that networks of one architecture share, whatever task they are for: tracing is slow."""
    return cached_property(lambda net: find(net) if net.original is None else getattr(net.original, find.__name__))


class Network:
    """An architecture prepared for population work: its module (without storage), spec, and what tracing found; `task`: the
    name of the task that it is for, where that is known."""

    def __init__(self, module: nn.Module, example: Tensor | None = None):
        """`example` [example …]: inputs that tracing may use; not needed for chains and for networks that say `n_inputs`."""
        self.task: str | None = None
        self.original: Network | None = None
        n_inputs = getattr(module, "n_inputs", None)
        self.example = torch.zeros(2, n_inputs) if example is None and n_inputs else example
        self.module = copy.deepcopy(module).eval().to("meta")
        self.spec = WeightSpec.of_module(self.module)
        self._checked: dict[tuple, tuple[str, ...]] = {}
        self._sizes: dict[tuple, tuple[float, float]] = {}

    def of_task(self, task: str) -> "Network":
        """The same network for a named task."""
        same = copy.copy(self)
        same.task, same.original = task, self
        return same

    @traced
    def chain(self) -> Chain | None:
        try:
            return trace(self.module)
        except UntraceableError:
            return None

    @traced
    def symmetry(self) -> Symmetry:
        """The unit groups. Raises: UntraceableError, naming the operation, where they cannot be derived."""
        if self.chain is not None:
            return Symmetry.of_chain(self.spec, self.chain)
        if self.example is None:
            raise UntraceableError(f"tracing {type(self.module).__name__} needs an example of its inputs")
        module = own_copy(self.module, training=False).to_empty(device="cpu")
        return traced_symmetry(module, self.spec, self.example, lambda flat, inputs: self.logits(flat, inputs, "loop"))

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


@lru_cache(maxsize=256)
def network_of(arch: Arch | UserArch, task: str | None = None) -> Network:
    """The prepared network of an architecture, for a task (cached: tracing happens once)."""
    return Network(arch.skeleton(), arch.example) if task is None else network_of(arch).of_task(task)


def _columns(logits: Tensor) -> Tensor:
    """[… example class] -> [… class example] in memory: reductions over a few classes are then vectorised over examples,
    fifty times faster on the CPU than along the last axis."""
    return logits.transpose(-1, -2).contiguous()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy per net [net], in nats. Labels: class ids [(net) example], or probabilities [(net) example class]."""
    log_probs = F.log_softmax(_columns(logits), dim=-2)
    if labels.is_floating_point():
        return -(log_probs * labels.transpose(-1, -2)).sum(-2).mean(-1)
    picked = log_probs.gather(-2, labels.expand(logits.shape[:-1]).unsqueeze(-2)).squeeze(-2)
    return -picked.mean(-1)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of correct predictions per net [net], in [0, 1], float64. Among equal logits the first class is the prediction."""
    columns, n_classes = _columns(logits), logits.shape[-1]
    places = torch.arange(n_classes, 0, -1, dtype=torch.int16, device=logits.device).unsqueeze(-1)
    first = ((columns == columns.amax(-2, keepdim=True)) * places).amax(-2)  # n_classes for class 0, down to 1; 0 for NaN
    return (first == n_classes - labels).double().mean(-1)


def layer_errors(network: Network, predicted: Tensor, target: Tensor, inputs: Tensor) -> Tensor:
    """How far predicted weights [net weights] are from target ones in what each layer computes: [net].

    Per layer, the mean squared difference of pre-activations when both read the target net's own activations on `inputs`
    [example …]; the mean over layers. A squared error of weights in the metric of the inputs they meet: weights that the data
    never excites count for nothing. Raises: UntraceableError unless the network is a chain.
    """
    if network.batched is None:
        raise UntraceableError(
            f"what the layers of {type(network.module).__name__} compute cannot be compared: it is not traced"
        )
    difference, errors = network.spec.unflatten(predicted - target), []

    def watch(name: str, module: nn.Module, again: Callable) -> None:
        if isinstance(
            module, nn.Linear | nn.Conv2d
        ):  # linear in its weights: differences of outputs are outputs of differences
            errors.append(leading(again(difference), len(target)).square().flatten(1).mean(1))

    network.batched(network.spec.unflatten(target), inputs, watch=watch)
    return torch.stack(errors).mean(0)


def score(
    network: Network, flat: Tensor, inputs: Tensor, labels: Tensor, plan: Plan | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Accuracy and mean cross-entropy of each net [net weights] on inputs [example …], both [net] float64 on the CPU.

    dtype: what the nets compute in (bfloat16 halves the bytes; LOG.md says what that costs); the loss is always in float32.
    """

    def measure(logits: Tensor, block: slice) -> Tensor:
        logits = logits.float()
        means = torch.stack([accuracy(logits, labels[block]), cross_entropy(logits, labels[block]).double()], dim=-1)
        return means.unsqueeze(1) * (logits.shape[1] / len(inputs))

    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    accuracies, losses = _over_nets(network, flat.to(dtype), inputs, measure, plan).sum(1).cpu().unbind(1)
    return accuracies, losses


def predictions(network: Network, flat: Tensor, inputs: Tensor, plan: Plan | None = None) -> Tensor:
    """Class probabilities [net example class]."""
    return _over_nets(network, flat, inputs, lambda logits, _: logits.softmax(-1), plan)


def _over_nets(network: Network, flat: Tensor, inputs: Tensor, measure, plan: Plan | None) -> Tensor:
    """measure(logits [net example class], examples) [net examples' …] of all nets, blocks of examples joined along axis 1."""
    size = _block(network, flat, inputs)
    blocks = [slice(first, first + size) for first in range(0, len(inputs), size)]

    @torch.no_grad()
    def part(nets: slice, backend: str) -> Tensor:
        tensors = network.spec.unflatten(flat[nets])
        return torch.cat([measure(network.logits_of(tensors, inputs[b], backend), b) for b in blocks], dim=1)

    plan = plan or scoring_plan(network, flat, inputs, lambda plan, nets: _spread(part, nets, plan))
    return _spread(part, slice(0, len(flat)), plan)


def _spread(part, nets: slice, plan: Plan) -> Tensor:
    return torch.cat(spread(lambda rows: part(rows, plan.backend), plan.parts(nets.stop), plan.workers))


def _block(network: Network, flat: Tensor, inputs: Tensor) -> int:
    outputs, _ = network.activations(inputs)
    return next((n for n in BLOCKS if 8 * n * outputs * flat.element_size() <= CACHE_BYTES), BLOCKS[-1])


def scoring_plan(network: Network, flat: Tensor, inputs: Tensor, probe=None) -> Plan:
    """How a population [net weights] is scored on inputs [example …]."""
    backends = network.backends(inputs)
    outputs, flops = network.activations(inputs)
    n_bytes = (outputs * min(len(inputs), _block(network, flat, inputs)) + network.spec.n_weights) * flat.element_size()
    name = f"score {network.name} {tuple(inputs.shape)} {flat.dtype}"
    return choose(Job(name, len(flat), int(n_bytes), flops * len(inputs), backends, flat.device), probe)
