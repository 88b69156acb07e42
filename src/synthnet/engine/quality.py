"""How good a net is, as one number: what steps are said to have gained, and what critics foresee."""

import torch
from torch import Tensor


def bounded(loss: Tensor, chance: float) -> Tensor:
    """1 − min(loss, 2 c)/c, where c is the loss of guessing: 1 at perfection, 0 at chance, −1 at worst or not finite."""
    return 1 - torch.nan_to_num(loss.double(), nan=2 * chance, posinf=2 * chance).clamp(max=2 * chance) / chance


def counted(metric: Tensor, loss: Tensor) -> Tensor:
    """The metric, 0 where the loss is not finite."""
    return torch.where(torch.isfinite(loss), metric.double(), 0.0)


def quality(metric: Tensor, loss: Tensor, chance: float) -> Tensor:
    """Half the metric, half bounded loss."""
    return 0.5 * counted(metric, loss) + 0.5 * bounded(loss, chance)
