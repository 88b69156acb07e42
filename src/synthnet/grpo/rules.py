"""What a layer's examples feel of noise on its weights, and its score: one rule for each kind of layer.

Where a weight is used several times, there are four ways:

- joint: the Gaussian over all uses, z ~ N(H M, H S² Hᵀ + s²): exact; for Linear layers over tokens or times
- tied: one draw for each example, made: exact; for norms, positions and embeddings
- flipout: one draw for all examples, whose rows and columns each of them gives signs of its own (Wen et al. 2018, arXiv
  1803.04386): for each example as tied, between examples uncorrelated, and no kernel is made for each; for convolutions
- node: noise of its own at every use; to first order its mean gradient is that of tied noise; for grouped convolutions
"""

from dataclasses import replace
from functools import reduce
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthnet.grpo.draws import LEAST, Draws, Layer, Score, Tensors, made, sum_of

MOST_JOINT = 128  # uses of a Linear layer up to which they are joint
RIDGE = 1e-4  # of a joint covariance's mean variance, added to it: uses may be alike
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d)
FELT = (nn.Linear, nn.Embedding, *CONVOLUTIONS, *NORMS)


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
        if n_uses > 1 and uses == "flipout":
            return _flipout(layer, draws)
        joint = 1 < n_uses <= MOST_JOINT and uses == "auto"
        if joint and all((each == each[:1]).all() for each in layer.deviation.values()):
            return _joint(layer, draws)
        return _node(layer, draws)
    if uses == "node" or module.groups > 1:
        return _node(layer, draws)
    return _tied(layer, draws, _patches(layer)) if uses == "tied" else _flipout(layer, draws)


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
    moves = moves.mT if isinstance(layer.module, nn.Linear) else moves
    return draws.around(means, moves.reshape(*moves.shape[:3], *means.shape[1:])), score


def _flipout(layer: Layer, draws: Draws) -> tuple[Tensor, Score]:
    weight, deviation = layer.mean["weight"], layer.deviation["weight"]
    once, means, inputs = draws.once(weight), layer.linear(layer.mean), draws.paired(layer.inputs)
    rows, columns = (draws.signs(weight.shape[axis], weight) for axis in (0, 1))
    axis = -1 if isinstance(layer.module, nn.Linear) else 1
    along = lambda signs, like: signs.view(len(signs), *(1 if d != axis % like.ndim else -1 for d in range(1, like.ndim)))  # noqa: E731
    own = {name: each for name, each in layer.mean.items() if name == "bias"}  # each example's own, as no kernel is
    noise, of_bias = made(own, layer.deviation, draws)
    moves = means.new_empty(len(once), inputs.shape[1], *draws.paired(means).shape[2:])
    for pair, place in product(range(len(once)), range(inputs.shape[1])):
        seen, out = inputs[pair % len(inputs), place], moves[pair, place]
        move = replace(layer, inputs=seen * along(columns[pair], seen)).linear({"weight": once[pair] * deviation})
        torch.mul(move, along(rows[pair], move), out=out)
        if own:
            out += along(noise["bias"][pair], out)

    def level(change: Tensors) -> Tensor:
        moved = change["weight"] / deviation
        of_pair = (once * moved).view(*once.shape[:3], -1).sum(-1)
        return draws.level(torch.einsum("pno,poi,pni->pn", rows, of_pair, columns), moved.square().sum())

    def slope(weights: Tensor) -> Tensors:
        signs = torch.einsum("pn,pno,pni->poi", draws.opposed(weights).sum(1), rows, columns)
        return {"weight": (once * signs.view(*signs.shape, *(1,) * (once.ndim - 3))).sum(0) / deviation}

    return draws.around(means, moves), sum_of([Score(level, slope), of_bias])


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
