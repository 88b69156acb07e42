"""How good a net is, as one number: what steps are said to have gained, and what critics foresee."""

import math

import torch
from torch import Tensor


def bounded(loss: Tensor, n_classes: int) -> Tensor:
    """1 − min(CE, 2 ln C)/ln C: 1 at perfection, 0 at chance, −1 at worst or not finite."""
    chance = math.log(n_classes)
    return 1 - torch.nan_to_num(loss.double(), nan=2 * chance, posinf=2 * chance).clamp(max=2 * chance) / chance


def counted(accuracy: Tensor, loss: Tensor) -> Tensor:
    """Accuracy, 0 where the loss is not finite."""
    return torch.where(torch.isfinite(loss), accuracy.double(), 0.0)


def quality(accuracy: Tensor, loss: Tensor, n_classes: int) -> Tensor:
    """Half accuracy, half bounded loss."""
    return 0.5 * counted(accuracy, loss) + 0.5 * bounded(loss, n_classes)
