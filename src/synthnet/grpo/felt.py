"""What examples feel of noise on the weights: one net, run so that each example sees its own draw of them.

A layer's own draw for each example need not be made. Where a weight is used once for an example (Linear layers of an MLP), the
pre-activation under its own draw is exactly z = M h + b + √(S² h² + s²) ∘ ξ (local reparameterisation: Kingma, Salimans and
Welling 2015, arXiv 1506.02557), and conditioning on z (Rao and Blackwell) leaves out all noise that the example did not feel.
Where a weight is used several times, there are three ways:

- joint: the Gaussian over all uses, z ~ N(H M, H S² Hᵀ + s²): exact; for Linear layers over tokens or times
- tied: one draw for each example, made: exact; for norms, positions, embeddings and small kernels
- node: noise of its own at every use; to first order its mean gradient is that of tied noise; for wide kernels

No derivative passes from layer to layer: a layer's inputs are recorded as they came, and what is differentiated is what it
makes of them, which is linear in its weights. Rows are draws times examples: `group` draws of all examples, one after the
other, 2j and 2j + 1 mirrored.
"""

import operator
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from synthnet.engine import Network
from synthnet.errors import InputError
from synthnet.grpo.sample import mirrored

USES = ("auto", "tied", "node")
LAYERS = ("all", "last", "one")
SMALL, MOST_JOINT = 256, 128  # weights of a kernel up to which it is tied; uses of a Linear layer up to which they are joint
RIDGE = 1e-4  # of a joint covariance's mean variance, added to it: uses may be alike
LEAST = 1e-12  # deviation of anything that is divided by it
CONVOLUTIONS, ELEMENTWISE = (nn.Conv1d, nn.Conv2d), (operator.add, operator.mul, torch.add, torch.mul)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d)
FELT = (nn.Linear, nn.Embedding, *CONVOLUTIONS, *NORMS)

Tensors = dict[str, Tensor]  # by name; of a module, by its own names
Score = Callable[[Tensors], Tensor]  # change of the weights -> log p(felt | changed) − log p(felt) [row]


@dataclass(frozen=True)
class Draws:
    """`group` draws of each of n examples; `uses`: what noise of a weight that an example uses often is; `layers`: which have
    noise, None for all of them."""

    group: int
    n: int
    uses: str
    generator: torch.Generator
    layers: frozenset[str] | None = None

    def reach(self, name: str) -> bool:
        return self.layers is None or name in self.layers

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Standard normal numbers [row *shape], opposite in mirrored draws."""
        half = torch.randn((self.group // 2, self.n * torch.Size(shape).numel()), generator=self.generator)
        return mirrored(half).view(self.group * self.n, *shape).to(like)

    def rows(self, value: Tensor) -> Tensor:
        """A value of each row, from one of each example where all its draws still share it."""
        return value if len(value) != self.n else value.expand(self.group, *value.shape).flatten(0, 1)


@dataclass(frozen=True)
class Layer:
    """A module as a rule meets it: its mean weights and their deviations by its own names, and its inputs."""

    module: nn.Module
    mean: Tensors
    deviation: Tensors
    inputs: Tensor

    def linear(self, weights: Tensors) -> Tensor:
        """What a Linear layer or a convolution makes of its inputs with these weights; linear in them."""
        module, weight, bias = self.module, weights["weight"], weights.get("bias")
        if isinstance(module, nn.Linear):
            return F.linear(self.inputs, weight, bias)
        convolve = F.conv1d if isinstance(module, nn.Conv1d) else F.conv2d
        return convolve(self.inputs, weight, bias, module.stride, module.padding, module.dilation, module.groups)


def check_felt(net: Network) -> None:
    """Raises: InputError, naming it, for a net with a layer that no rule here serves."""
    if net.batched is None:
        raise InputError(f"{type(net.module).__name__} cannot be traced, and examples feel traced nets only")
    for name, owned in net.batched.owned.items():
        module = net.batched.modules[name]
        strange = not isinstance(module, FELT) or getattr(module, "padding_mode", "zeros") != "zeros"
        if owned and (strange or (isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.track_running_stats)):
            raise InputError(f"examples cannot feel noise on {name}, {type(module).__name__}")


@torch.no_grad()
def feel(net: Network, mean: Tensor, sigma: Tensor, inputs: Tensor, draws: Draws) -> tuple[Tensor, Score]:
    """Outputs [draw example out…] of a net with mean weights [weights] under noise of deviation sigma [weights], on inputs
    [example …]; and the score of all that was felt, of changes of the mean weights by name."""
    means, deviations, scores = net.spec.unflatten(mean), net.spec.unflatten(sigma.clamp_min(LEAST)), []
    env: dict[fx.Node, object] = {}
    own = net.batched.owned
    for node in net.batched.nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
        if node.op == "placeholder":
            env[node] = inputs if _shared_to_a_layer(node, net, draws) else draws.rows(inputs)
        elif node.op == "output":
            return args[0].unflatten(0, (draws.group, draws.n)), _sum_of(scores)
        elif node.op == "get_attr":
            env[node], score = _parameter(node, means, deviations, draws)
            scores += [score] if score else []
        elif node.op == "call_module" and own[node.target]:
            module = net.batched.modules[node.target]
            local = {name: name.removeprefix(f"{node.target}.") for name in own[node.target] if name in means}
            held, spread = ({short: part[name] for name, short in local.items()} for part in (means, deviations))
            if not draws.reach(node.target):
                env[node] = torch.func.functional_call(module, held, args, kwargs)
                continue
            env[node], score = _feel_layer(Layer(module, held, spread, args[0]), draws)
            scores.append(lambda change, local=local, score=score: score({s: change[name] for name, s in local.items()}))
        elif node.op == "call_module":
            env[node] = net.batched.modules[node.target](*args, **kwargs)
        else:
            function = node.target if node.op == "call_function" else getattr(torch.Tensor, node.target)
            env[node] = function(*(_as_rows(node.args, args) if function in ELEMENTWISE else args), **kwargs)
    raise InputError("the traced module returns nothing")


def _sum_of(scores: list[Score]) -> Score:
    return lambda change: sum(score(change) for score in scores)


def noisy_layers(net: Network, which: str, draw: torch.Generator) -> frozenset[str] | None:
    """The layers that have noise: all (None), the one nearest the outputs, or one of them, drawn; each that has something to
    learn, bare parameters too."""
    if which == "all":
        return None
    learned = {name for name, _ in net.module.named_parameters()}

    def learns(node: fx.Node) -> bool:
        if node.op == "call_module":
            return not learned.isdisjoint(net.batched.owned[node.target])
        return node.op == "get_attr" and _is_felt(node, learned)

    names = list(dict.fromkeys(node.target for node in net.batched.nodes if learns(node)))
    number = -1 if which == "last" else int(torch.randint(len(names), (), generator=draw))
    return frozenset({names[number]})


def _shared_to_a_layer(node: fx.Node, net: Network, draws: Draws) -> bool:
    """Whether inputs go through operations without noise into one Linear layer or convolution, and nowhere else: what it makes
    of them before noise is then the same for all draws of an example."""
    while len(node.users) == 1:
        (node,) = node.users
        if node.op == "call_module" and net.batched.owned[node.target] and draws.reach(node.target):
            return isinstance(net.batched.modules[node.target], (nn.Linear, *CONVOLUTIONS))
        if len(node.all_input_nodes) != 1 or node.op == "output":
            return False
    return False


def _feel_layer(layer: Layer, draws: Draws) -> tuple[Tensor, Score]:
    module, inputs, uses = layer.module, layer.inputs, draws.uses
    if isinstance(module, nn.Embedding):
        return _embedding(layer, draws)
    if isinstance(module, NORMS):
        return _norm(layer, draws)
    if isinstance(module, nn.Linear):
        n_uses = inputs[0, ..., 0].numel()
        if n_uses > 1 and uses == "tied":
            return _tied(layer, draws, inputs.flatten(1, -2).mT)
        joint = 1 < n_uses <= MOST_JOINT and uses == "auto"
        if joint and all((each == each[:1]).all() for each in layer.deviation.values()):
            return _joint(layer, draws)
        return _node(layer, draws)
    small = layer.mean["weight"].numel() <= SMALL
    if module.groups == 1 and (uses == "tied" or (uses == "auto" and small)):
        return _tied(layer, draws, _patches(layer))
    return _node(layer, draws)


def _node(layer: Layer, draws: Draws) -> tuple[Tensor, Score]:
    squares = Layer(layer.module, {}, {}, layer.inputs.square())
    deviation = squares.linear({name: each.square() for name, each in layer.deviation.items()}).clamp_min(LEAST**2).sqrt()
    means, deviation = draws.rows(layer.linear(layer.mean)), draws.rows(deviation)
    noise = draws.normal(means.shape[1:], means)

    def score(change: Tensors) -> Tensor:
        moved = draws.rows(layer.linear(change)) / deviation
        return (moved * noise - 0.5 * moved.square()).flatten(1).sum(1)

    return means + deviation * noise, score


def _joint(layer: Layer, draws: Draws) -> tuple[Tensor, Score]:
    """Deviations are the same for all outputs, so one covariance over uses serves them all."""
    means = layer.linear(layer.mean)
    inputs = layer.inputs.flatten(1, -2) * layer.deviation["weight"][0]
    covariance = inputs @ inputs.mT + (layer.deviation["bias"][0].square() if "bias" in layer.deviation else 0.0)
    diagonal = covariance.diagonal(dim1=1, dim2=2)
    diagonal += RIDGE * diagonal.mean(1, keepdim=True) + LEAST
    root = draws.rows(torch.linalg.cholesky(covariance))
    noise = draws.normal((root.shape[1], means.shape[-1]), means)
    felt = (root @ noise).view(len(noise), *means.shape[1:])

    def score(change: Tensors) -> Tensor:
        moved = torch.linalg.solve_triangular(root, draws.rows(layer.linear(change)).view_as(noise), upper=False)
        return (moved * noise - 0.5 * moved.square()).flatten(1).sum(1)

    return draws.rows(means) + felt, score


def _tied(layer: Layer, draws: Draws, patches: Tensor) -> tuple[Tensor, Score]:
    """patches [row or example, input, use]: what each output is a product with."""
    noise, score = _made(layer.mean, layer.deviation, draws)
    means = draws.rows(layer.linear(layer.mean))
    felt = noise["weight"].flatten(2) @ draws.rows(patches)
    if "bias" in noise:
        felt = felt + noise["bias"].unsqueeze(-1)
    return means + (felt.mT if isinstance(layer.module, nn.Linear) else felt).reshape(means.shape), score


def _patches(layer: Layer) -> Tensor:
    module, inputs = layer.module, layer.inputs
    flat = isinstance(module, nn.Conv1d)
    pair = lambda value: (1, *value) if flat else value  # noqa: E731
    padding = (0, *module.padding) if flat else module.padding
    inputs = inputs.unsqueeze(2) if flat else inputs
    return F.unfold(inputs, pair(module.kernel_size), pair(module.dilation), padding, pair(module.stride))


def _norm(layer: Layer, draws: Draws) -> tuple[Tensor, Score]:
    module, inputs, mean = layer.module, draws.rows(layer.inputs), layer.mean
    if isinstance(module, nn.LayerNorm):
        plain, place = F.layer_norm(inputs, module.normalized_shape, eps=module.eps), lambda each: each
    else:
        wide = (1,) * (inputs.ndim - 2)
        place = lambda each: each.view(*each.shape, *wide)  # noqa: E731
        if isinstance(module, nn.GroupNorm):
            plain = F.group_norm(inputs, module.num_groups, eps=module.eps)
        else:
            plain = (inputs - place(mean["running_mean"])) * place((mean["running_var"] + module.eps).rsqrt())
    learned = {name: mean[name] for name in ("weight", "bias") if name in mean}
    noise, score = _made(learned, layer.deviation, draws)
    between = (1,) * (inputs.ndim - 1 - len(module.normalized_shape)) if isinstance(module, nn.LayerNorm) else ()
    for name, apply in (("weight", torch.mul), ("bias", torch.add)):
        if name in learned:
            own = learned[name] + noise[name]
            plain = apply(plain, place(own.view(len(own), *between, *own.shape[1:])))
    return plain, score


def _embedding(layer: Layer, draws: Draws) -> tuple[Tensor, Score]:
    noise, score = _made(layer.mean, layer.deviation, draws)
    ids = draws.rows(layer.inputs)
    row = torch.arange(len(ids), device=ids.device).view(-1, *(1,) * (ids.ndim - 1))
    return layer.mean["weight"][ids] + noise["weight"][row, ids], score


def _parameter(node: fx.Node, means: Tensors, deviations: Tensors, draws: Draws) -> tuple[Tensor, Score | None]:
    """A bare parameter, as positions are: noise where it is added to or multiplied with what examples have, else as it is."""
    name = node.target
    if not draws.reach(name) or not _is_felt(node, means):
        return means[name], None
    noise, score = _made({"own": means[name]}, {"own": deviations[name]}, draws)
    return means[name] + noise["own"], lambda change: score({"own": change[name]})


def _is_felt(node: fx.Node, names: Container[str]) -> bool:
    return node.target in names and all(user.target in ELEMENTWISE for user in node.users)


def _as_rows(nodes: Sequence[object], values: Sequence[object]) -> list[object]:
    """The operands of an elementwise operation; a bare parameter of shape [1 …] that has a noise for each row meets rows."""
    most = max((v.ndim for n, v in zip(nodes, values, strict=True) if isinstance(v, Tensor) and not _is_bare(n)), default=None)
    found = []
    for node, value in zip(nodes, values, strict=True):
        while most is not None and _is_bare(node) and value.ndim > most and value.shape[1] == 1:
            value = value.squeeze(1)
        found.append(value)
    return found


def _is_bare(node: object) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr"


def _made(means: Tensors, deviations: Tensors, draws: Draws) -> tuple[Tensors, Score]:
    """Own draws of weights, made: noise [row *shape] by name."""
    noise = {name: draws.normal(each.shape, each) for name, each in means.items()}

    def score(change: Tensors) -> Tensor:
        total = 0.0
        for name, drawn in noise.items():
            moved = (change[name] / deviations[name]).flatten()
            total = total + drawn.flatten(1) @ moved - 0.5 * moved.square().sum()
        return total

    return {name: drawn * deviations[name] for name, drawn in noise.items()}, score
