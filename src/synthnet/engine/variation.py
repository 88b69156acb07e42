"""Images as they might have been: what keeps a policy from learning the few training images by heart."""

from dataclasses import dataclass
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from synthnet.errors import InputError

CHANNELS = (1, 3)  # of images whose shape is not stored with them: grey or colour
LARGEST_WARP = 10
PICTURE = 8  # pixels along a side of the pictures that the statistics of a data set are made of
STATISTICS = 12 * PICTURE**2  # mean, deviation, ten classes


@dataclass(frozen=True)
class Variation:
    """noise: standard deviation of Gaussian noise on inputs. warp: standard deviation of the six numbers of an affine map, as
    a share of half an image's side: 0.1 shifts, turns, stretches and shears by about a tenth of it each."""

    noise: float = 0.0
    warp: float = 0.0

    def __call__(self, images: Tensor, draw: torch.Generator) -> Tensor:
        """Images [example feature…], each varied by draws of its own. Raises: InputError where a warp meets images that
        are not square."""
        if self.warp:
            images = warped(images, self.warp, draw)
        if self.noise:
            images = images + self.noise * torch.randn(images.shape, generator=draw).to(images)
        return images


AS_THEY_ARE = Variation()


def check_variation(section: str, vary: Variation, inputs: Tensor) -> None:
    """Refuse, by the names of a section's settings, a warp of no meaning or of inputs [example feature…] that are no square
    images, and noise on ids."""
    if not 0 <= vary.warp <= LARGEST_WARP:
        raise InputError(f"{section}.warp must lie in 0..{LARGEST_WARP}, got {vary.warp}")
    if vary.warp:
        image_shape(inputs)
    if vary.noise and not inputs.is_floating_point():
        name = f"{section}.input_noise"
        raise InputError(f"{name} is added to numbers, and this task's inputs are ids: pass {name}=0")


def shuffled(inputs: Tensor, draw: torch.Generator) -> Tensor:
    """Inputs [example feature…], the numbers of each in an order of its own: what an input is made of, and no input."""
    flat = inputs.flatten(1)
    order = torch.stack([torch.randperm(flat.shape[1], generator=draw) for _ in flat]).to(flat.device)
    return flat.gather(1, order).view_as(inputs)


def image_shape(images: Tensor) -> tuple[int, int, int]:
    """Channels and sides of flattened square images [example feature…]. Raises: InputError for others."""
    features = images[0].numel()
    sides = [isqrt(features // channels) for channels in CHANNELS]
    square = [(c, side, side) for c, side in zip(CHANNELS, sides, strict=True) if c * side**2 == features]
    if not square:
        raise InputError(f"a warp needs square grey or colour images, got inputs of {features} numbers")
    return square[0]


def warped(images: Tensor, size: float, draw: torch.Generator) -> Tensor:
    """Square images [example feature…] under affine maps near the identity; what comes in from outside repeats the border."""
    n, shape = len(images), image_shape(images)
    maps = torch.eye(2, 3) + size * torch.randn((n, 2, 3), generator=draw)
    grid = F.affine_grid(maps.to(images), [n, *shape], align_corners=False)
    moved = F.grid_sample(images.reshape(n, *shape), grid, padding_mode="border", align_corners=False)
    return moved.reshape(images.shape)
