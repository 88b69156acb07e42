"""What a layer's examples feel of noise on its weights, and its score: one rule for each kind of layer.

Where a weight is used several times, there are three ways:

- joint: the Gaussian over all uses, z ~ N(H M, H S² Hᵀ + s²): exact; for Linear layers over tokens or times
- tied: one draw for each example, made: exact; for norms, positions, embeddings and small kernels
- node: noise of its own at every use; to first order its mean gradient is that of tied noise; for wide kernels

Rows are draws times examples, one draw of all examples after the other; draws 2j and 2j + 1 are mirrored, so that noise is held
once for both. Inputs that all draws of an example still share are held once for each example.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import grad

SMALL, MOST_JOINT = 256, 128  # weights of a kernel up to which it is tied; uses of a Linear layer up to which they are joint
RIDGE = 1e-4  # of a joint covariance's mean variance, added to it: uses may be alike
LEAST = 1e-12  # deviation of anything that is divided by it
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d)
FELT = (nn.Linear, nn.Embedding, *CONVOLUTIONS, *NORMS)

Tensors = dict[str, Tensor]  # by name; of a module, by its own names


@dataclass(frozen=True)
class Score:
    """What was felt, as a matter of the weights. level: a change of them -> log p(felt | changed) − log p(felt) [row]; slope: a
    weight of each row [row] -> the gradient of Σ weight · log p at no change, for which nothing has to be run."""

    level: Callable[[Tensors], Tensor]
    slope: Callable[[Tensor], Tensors]


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
        """Standard normal numbers [pair example *shape], of which the second draw of a pair has the opposite ones."""
        half = torch.randn((self.group // 2, self.n * torch.Size(shape).numel()), generator=self.generator)
        return half.view(-1, self.n, *shape).to(like)

    def rows(self, value: Tensor) -> Tensor:
        """A value of each row, from one of each example where all its draws still share it."""
        return value.expand(self.group, *value.shape).flatten(0, 1) if self.shared(value) else value

    def shared(self, value: Tensor) -> bool:
        """Whether a value is one of each example, not of each row."""
        return len(value) == self.n

    def paired(self, value: Tensor) -> Tensor:
        """A value of each row as [pair sign example …], one that all draws share as [1 1 example …]."""
        return value.unflatten(0, (1, 1, self.n) if self.shared(value) else (self.group // 2, 2, self.n))

    def signed(self, half: Tensor) -> Tensor:
        """Both draws of each pair [row …] from noise [pair example …]."""
        return torch.stack([half, -half], 1).flatten(0, 2)

    def by_sign(self, *values: Tensor) -> Iterator[tuple]:
        """For both draws of all pairs: their sign, and their part [pair example …] of each value [pair sign example …]."""
        for place, sign in enumerate((1.0, -1.0)):
            yield sign, *(value[:, place % value.shape[1]] for value in values)

    def blank(self, like: Tensor) -> Tensor:
        """Room for something [pair sign example …] like a value of rows or of examples."""
        return like.new_empty(self.group // 2, 2, self.n, *like.shape[1:])

    def level(self, along: Tensor, square: Tensor) -> Tensor:
        """log p(felt | moved) − log p(felt) [row]: the noise along a move of the felt's mean, in deviations, of a pair's first
        draw [pair example] or of both [pair sign example], less half of the move's square, which broadcasts to the latter."""
        return (_signs(along) * (along.unsqueeze(1) if along.ndim == 2 else along) - 0.5 * square).flatten()

    def opposed(self, weights: Tensor) -> Tensor:
        """Weights of rows [row] as [pair sign example], those of second draws with the other sign, as their noise has."""
        return _signs(weights) * weights.view(-1, 2, self.n)

    def weighed(self, weights: Tensor, noise: Tensor, like: Tensor) -> Tensor:
        """Noise [pair example …], signed, times weights [row]: of each row, or summed over an example's draws, as `like` is."""
        own = self.opposed(weights)
        if self.shared(like):
            return torch.einsum("pn,pnf->nf", own.sum(1), noise.flatten(2)).view_as(like)
        return torch.einsum("psn,pnf->psnf", own, noise.flatten(2)).view_as(like)


def _signs(like: Tensor) -> Tensor:
    """Of the draws of a pair [sign 1]."""
    return torch.tensor([[1.0], [-1.0]], dtype=like.dtype, device=like.device)


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

    def transposed(self, outputs: Tensor) -> Tensors:
        """The gradient of ⟨outputs, linear(weights)⟩ with respect to the weights."""
        module, shape = self.module, self.mean["weight"].shape
        if isinstance(module, nn.Linear):
            found = {"weight": outputs.flatten(0, -2).mT @ self.inputs.flatten(0, -2)}
        else:
            of_kernel = grad.conv1d_weight if isinstance(module, nn.Conv1d) else grad.conv2d_weight
            how = (module.stride, module.padding, module.dilation, module.groups)
            found = {"weight": of_kernel(self.inputs, shape, outputs, *how)}
        if "bias" in self.mean:
            axes = range(outputs.ndim - 1) if isinstance(module, nn.Linear) else (0, *range(2, outputs.ndim))
            found["bias"] = outputs.sum(tuple(axes))
        return found


def plain(module: nn.Module, *args, **kwargs) -> Tensor:
    """What a module without noise makes of its inputs; pooling of whole windows by strided maxima: the same numbers as torch's,
    which also looks where they were (docs/experiments/by-example.md)."""
    return _pooled(args[0], module.kernel_size) if _pools_whole(module) else module(*args, **kwargs)


def _pools_whole(module: nn.Module) -> bool:
    """Whether it takes maxima of square windows that neither overlap nor reach beyond the sides."""
    if not isinstance(module, nn.MaxPool2d) or not isinstance(module.kernel_size, int):
        return False
    own = module.stride, module.padding, module.dilation, module.ceil_mode, module.return_indices
    return own == (module.kernel_size, 0, 1, False, False)


def _pooled(images: Tensor, size: int) -> Tensor:
    """The maxima of whole windows [… row column]."""
    for dim in (-2, -1):
        n = images.shape[dim] // size
        images = reduce(torch.maximum, images.narrow(dim, 0, n * size).unflatten(dim, (n, size)).unbind(dim))
    return images


def feel_layer(layer: Layer, draws: Draws) -> tuple[Tensor, Score]:
    """What a layer puts out [row …] under noise on its weights, and its score."""
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
    means = layer.linear(layer.mean)
    noise, found = draws.normal(means.shape[1:], means), draws.blank(means)
    for sign, centre, by, out in draws.by_sign(draws.paired(means), draws.paired(deviation), found):
        torch.addcmul(centre, noise, by, value=sign, out=out)
    level = lambda change: _level(layer.linear(change) / deviation, noise, draws)  # noqa: E731
    slope = lambda weights: layer.transposed(draws.weighed(weights, noise, deviation) / deviation)  # noqa: E731
    return found.flatten(0, 2), Score(level, slope)


def _level(moved: Tensor, noise: Tensor, draws: Draws) -> Tensor:
    """The score [row] of a move [row or example …], in deviations, beside noise [pair example …]."""
    moved, noise = draws.paired(moved.flatten(1)), noise.flatten(2)
    square = moved.square().sum(-1)
    if moved.shape[1] == 1:
        return draws.level(torch.einsum("nf,pnf->pn", moved[0, 0], noise), square)
    return draws.level((moved * noise.unsqueeze(1)).sum(-1), square)


def _joint(layer: Layer, draws: Draws) -> tuple[Tensor, Score]:
    """Deviations are the same for all outputs, so one covariance over uses serves them all."""
    means = layer.linear(layer.mean)
    inputs = layer.inputs.flatten(1, -2) * layer.deviation["weight"][0]
    covariance = inputs @ inputs.mT + (layer.deviation["bias"][0].square() if "bias" in layer.deviation else 0.0)
    diagonal = covariance.diagonal(dim1=1, dim2=2)
    diagonal += RIDGE * diagonal.mean(1, keepdim=True) + LEAST
    root = torch.linalg.cholesky(covariance)
    noise, found = draws.normal((root.shape[1], means.shape[-1]), means), draws.blank(means)
    for sign, centre, by, out in draws.by_sign(draws.paired(means), draws.paired(root), found):
        torch.add(centre, (by @ noise).view(out.shape), alpha=sign, out=out)

    def level(change: Tensors) -> Tensor:
        moved = layer.linear(change)
        return _level(torch.linalg.solve_triangular(root, moved.flatten(1, -2), upper=False), noise, draws)

    def slope(weights: Tensor) -> Tensors:
        felt = draws.weighed(weights, noise, root.new_empty(len(root), *noise.shape[2:]))
        return layer.transposed(torch.linalg.solve_triangular(root.mT, felt, upper=True).view_as(means))

    return found.flatten(0, 2), Score(level, slope)


def _tied(layer: Layer, draws: Draws, patches: Tensor) -> tuple[Tensor, Score]:
    """patches [row or example, input, use]: what each output is a product with."""
    noise, score = made(layer.mean, layer.deviation, draws)
    means, patches, weight = layer.linear(layer.mean), draws.paired(patches), noise["weight"].flatten(3)
    bias = noise["bias"].unsqueeze(-1) if "bias" in noise else means.new_zeros(len(weight), 1, 1, 1)
    moves = means.new_empty(len(weight), patches.shape[1], draws.n, weight.shape[2], patches.shape[-1])
    for pair, place in product(range(len(weight)), range(patches.shape[1])):
        torch.baddbmm(bias[pair], weight[pair], patches[pair % len(patches), place], out=moves[pair, place])
    moves, found = moves.mT if isinstance(layer.module, nn.Linear) else moves, draws.blank(means)
    for sign, centre, move, out in draws.by_sign(draws.paired(means), moves, found):
        torch.add(centre, move.reshape(out.shape), alpha=sign, out=out)
    return found.flatten(0, 2), score


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
        found, place = F.layer_norm(inputs, module.normalized_shape, eps=module.eps), lambda each: each
    else:
        wide = (1,) * (inputs.ndim - 2)
        place = lambda each: each.view(*each.shape, *wide)  # noqa: E731
        if isinstance(module, nn.GroupNorm):
            found = F.group_norm(inputs, module.num_groups, eps=module.eps)
        else:
            found = (inputs - place(mean["running_mean"])) * place((mean["running_var"] + module.eps).rsqrt())
    learned = {name: mean[name] for name in ("weight", "bias") if name in mean}
    noise, score = made(learned, layer.deviation, draws)
    between = (1,) * (inputs.ndim - 1 - len(module.normalized_shape)) if isinstance(module, nn.LayerNorm) else ()
    for name, apply in (("weight", torch.mul), ("bias", torch.add)):
        if name in learned:
            own = learned[name] + draws.signed(noise[name])
            found = apply(found, place(own.view(len(own), *between, *own.shape[1:])))
    return found, score


def _embedding(layer: Layer, draws: Draws) -> tuple[Tensor, Score]:
    noise, score = made(layer.mean, layer.deviation, draws)
    ids = draws.rows(layer.inputs)
    row = torch.arange(len(ids), device=ids.device).view(-1, *(1,) * (ids.ndim - 1))
    return layer.mean["weight"][ids] + draws.signed(noise["weight"])[row, ids], score


def made(means: Tensors, deviations: Tensors, draws: Draws) -> tuple[Tensors, Score]:
    """Own draws of weights, made: noise [pair example *shape] by name, and its score."""
    noise = {name: draws.normal(each.shape, each) for name, each in means.items()}
    if not noise:  # a norm without weights
        return {}, Score(lambda change: 0.0, lambda weights: {})

    def level(change: Tensors) -> Tensor:
        moved = {name: (change[name] / deviations[name]).flatten() for name in noise}
        along = sum(drawn.flatten(2) @ moved[name] for name, drawn in noise.items())
        return draws.level(along, sum(each.square().sum() for each in moved.values()))

    def slope(weights: Tensor) -> Tensors:
        own = draws.opposed(weights).sum(1)
        return {name: torch.einsum("pn,pn...->...", own, drawn) / deviations[name] for name, drawn in noise.items()}

    return {name: drawn * deviations[name] for name, drawn in noise.items()}, Score(level, slope)
