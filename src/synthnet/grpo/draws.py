"""What rules of layers work with: a layer as it is met, the draws of noise that its examples see, and a score.

Rows are draws times examples, one draw of all examples after the other; draws 2j and 2j + 1 are mirrored, so that noise is held
once for both. Inputs that all draws of an example still share are held once for each example.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import grad

LEAST = 1e-12  # deviation of anything that is divided by it

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

    def once(self, like: Tensor) -> Tensor:
        """Standard normal numbers [pair *shape], which all examples share."""
        return torch.randn((self.group // 2, *like.shape), generator=self.generator).to(like)

    def signs(self, n: int, like: Tensor) -> Tensor:
        """Ones and minus ones [pair example n], an example's own."""
        drawn = torch.randint(2, (self.group // 2, self.n, n), generator=self.generator)
        return (2 * drawn - 1).to(like)

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

    def around(self, means: Tensor, moves: Tensor) -> Tensor:
        """Means of rows or of examples, plus moves [pair sign example …], those of second draws with the other sign [row …]."""
        found = self.blank(means)
        for sign, centre, move, out in self.by_sign(self.paired(means), moves, found):
            torch.add(centre, move, alpha=sign, out=out)
        return found.flatten(0, 2)

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


def sum_of(scores: Sequence[Score]) -> Score:
    """That of all that was felt, of each by its own noise."""

    def slope(weights: Tensor) -> Tensors:
        found: Tensors = {}
        for score in scores:
            found |= {name: found.get(name, 0.0) + own for name, own in score.slope(weights).items()}
        return found

    return Score(lambda change: sum(score.level(change) for score in scores), slope)
