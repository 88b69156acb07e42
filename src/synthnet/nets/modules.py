"""The network modules that an architecture may name; each says its `n_inputs` and `n_classes`.

Start weights follow one rule for all (`start.draw_init`).
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from synthnet.errors import InputError
from synthnet.nets.chain import step

fx.wrap("step")  # one operation to whoever traces
MAX_LAYERS, MAX_WIDTH = 64, 1 << 20


def _check_sizes(name: str, sizes: list[int], least: int = 1) -> None:
    plain = isinstance(sizes, list) and least <= len(sizes) <= MAX_LAYERS
    if not plain or not all(type(n) is int and 0 < n < MAX_WIDTH for n in sizes):
        raise InputError(f"an {name} needs {least} to {MAX_LAYERS} sizes between 1 and {MAX_WIDTH}, got {str(sizes)[:60]}")


class MLP(nn.Module):
    """Linear layers fc1, fc2, … with ReLU between them; inputs of any shape are flattened."""

    def __init__(self, sizes: list[int]):
        super().__init__()
        _check_sizes("mlp", sizes, 2)
        self.n_inputs, self.n_classes, self.n_layers = sizes[0], sizes[-1], len(sizes) - 1
        for index, (n_in, n_out) in enumerate(pairwise(sizes), 1):
            self.add_module(f"fc{index}", nn.Linear(n_in, n_out))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for index in range(1, self.n_layers):
            x = self.activate(self.get_submodule(f"fc{index}")(x))
        return self.get_submodule(f"fc{self.n_layers}")(x)

    def activate(self, x: Tensor) -> Tensor:
        return torch.relu(x)


class StepMLP(MLP):
    """As MLP, but hidden units are on or off: 1 where what they sum up is above 0, else 0."""

    def activate(self, x: Tensor) -> Tensor:
        return step(x)


class CNN(nn.Module):
    """3x3 convolutions conv1, conv2, …, each with ReLU and 2x2 max-pooling, then one Linear layer fc; with `hidden`, Linear
    layers fc1, fc2, … with these sizes and ReLU between them. With `pools`, so many poolings: one after each of the first
    convolutions, those that are left after the last, so that nets of any depth have maps of one size.

    Inputs [example, channel·side·side] or [example, channel, side, side].
    """

    def __init__(
        self, side: int, channels: list[int], n_classes: int = 10, hidden: list[int] | None = None, pools: int | None = None
    ):
        super().__init__()
        _check_sizes("cnn", [side, n_classes, *channels, *(hidden or [])], 4)
        self.n_pools = len(channels) - 1 if pools is None else pools
        if self.n_pools < 0 or side >> self.n_pools < 1:
            raise InputError(f"a cnn that halves its {side} pixels {self.n_pools} times has none left")
        self.n_inputs, self.n_classes, self.n_convs = channels[0] * side**2, n_classes, len(channels) - 1
        self.shape = (channels[0], side, side)
        for index, (n_in, n_out) in enumerate(pairwise(channels), 1):
            self.add_module(f"conv{index}", nn.Conv2d(n_in, n_out, 3, padding=1))
        side >>= self.n_pools
        self.pool = nn.MaxPool2d(2)
        sizes = [channels[-1] * side * side, *(hidden or []), n_classes]
        self.head = [f"fc{index}" for index in range(1, len(sizes))] if hidden else ["fc"]
        for name, (n_in, n_out) in zip(self.head, pairwise(sizes), strict=True):
            self.add_module(name, nn.Linear(n_in, n_out))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1).unflatten(1, self.shape)
        for index in range(1, self.n_convs + 1):
            x = torch.relu(self.get_submodule(f"conv{index}")(x))
            x = self.pool(x) if index <= self.n_pools else x
        for _ in range(self.n_convs, self.n_pools):
            x = self.pool(x)
        x = x.flatten(1)
        for name in self.head[:-1]:
            x = torch.relu(self.get_submodule(name)(x))
        return self.get_submodule(self.head[-1])(x)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm around a residual addition."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(groups, channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


class ResNet(nn.Module):
    """A stem convolution, residual blocks of one width (none is allowed), average pooling to pool x pool, and a Linear layer.

    Inputs [example, channel·side·side] or [example, channel, side, side].
    """

    def __init__(
        self, side: int, width: int, blocks: int = 2, groups: int = 4, n_in: int = 1, n_classes: int = 10, pool: int = 1
    ):
        super().__init__()
        _check_sizes("resnet", [side, width, groups, n_in, n_classes, pool, *([blocks] if blocks else [])], 6)
        if width % groups or side % pool or blocks > MAX_LAYERS:
            raise InputError(
                "a resnet's width must be a multiple of its norm groups and its side of its pool, and it has at most "
                f"{MAX_LAYERS} blocks, got {width} and {groups}, {side} and {pool}, {blocks}"
            )
        self.n_inputs, self.n_classes, self.shape = n_in * side**2, n_classes, (n_in, side, side)
        self.stem, self.norm = nn.Conv2d(n_in, width, 3, padding=1), nn.GroupNorm(groups, width)
        self.blocks = nn.Sequential(*(ResidualBlock(width, groups) for _ in range(blocks)))
        self.pool, self.fc = nn.AvgPool2d(side // pool), nn.Linear(width * pool**2, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1).unflatten(1, self.shape)
        x = self.blocks(torch.relu(self.norm(self.stem(x))))
        return self.fc(self.pool(x).flatten(1))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a residual addition (He et al. 2016); the first may halve the image."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(n_out), nn.BatchNorm2d(n_out)
        self.downsample = nn.Identity()
        if stride > 1 or n_in != n_out:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.downsample(x))


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016) in its form for small images: a 3x3 stem without pooling. 11.2M weights at width 64.

    Inputs [example, channel·side·side] or [example, channel, side, side]; tensor names are torchvision's.
    """

    def __init__(self, side: int = 32, width: int = 64, n_in: int = 3, n_classes: int = 10):
        super().__init__()
        _check_sizes("resnet18", [side, width, n_in, n_classes], 4)
        self.n_inputs, self.n_classes, self.shape = n_in * side**2, n_classes, (n_in, side, side)
        self.conv1, self.bn1 = nn.Conv2d(n_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        below = width
        for number in range(4):
            out, stride = width << number, 2 if number else 1
            self.add_module(f"layer{number + 1}", nn.Sequential(BasicBlock(below, out, stride), BasicBlock(out, out, 1)))
            below = out
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(below, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x.flatten(1).unflatten(1, self.shape))))
        for number in range(4):
            x = self.get_submodule(f"layer{number + 1}")(x)
        return self.fc(self.pool(x).flatten(1))


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and feed-forward (Vaswani et al. 2017; pre-norm as in Xiong et al. 2020)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """A small vision Transformer (Dosovitskiy et al. 2021): patches, positions, blocks, mean over tokens, Linear layer.

    Inputs [example, side·side] or [example, 1, side, side].
    """

    def __init__(self, side: int, patch: int, dim: int, blocks: int = 2, heads: int = 2, n_classes: int = 10):
        super().__init__()
        _check_sizes("vit", [side, patch, dim, blocks, heads, n_classes], 6)
        if side % patch or dim % heads or blocks > MAX_LAYERS:
            raise InputError(
                f"a vit's side must be a multiple of its patch, its dim of its heads, its blocks at most {MAX_LAYERS}, "
                f"got {side}, {patch}, {dim}, {heads} and {blocks}"
            )
        self.n_inputs, self.n_classes, self.grid, self.patch = side**2, n_classes, side // patch, patch
        self.embed = nn.Linear(patch * patch, dim)
        self.position = nn.Parameter(torch.empty(self.grid**2, dim).uniform_(-1, 1) / dim**0.5)
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads) for _ in range(blocks)))
        self.norm, self.fc = nn.LayerNorm(dim), nn.Linear(dim, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1).unflatten(1, (self.grid, self.patch, self.grid, self.patch))
        x = self.embed(x.transpose(2, 3).flatten(3).flatten(1, 2)) + self.position
        return self.fc(self.norm(self.blocks(x)).mean(1))


BUILDERS = {"mlp": MLP, "step-mlp": StepMLP, "cnn": CNN, "resnet": ResNet, "resnet18": ResNet18, "vit": ViT}
