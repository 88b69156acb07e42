"""Each unit asks with where it stands alone (layer, width; for chunks also role, shape and position), as in Perceiver IO's own
decoder: all units of a layer get one answer, which is all that latents can say without seeing the unit."""

from torch import Tensor, nn


class Place(nn.Module):
    def __init__(self, dim: int, n_descriptors: int):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(n_descriptors, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, units: Tensor, descriptors: Tensor) -> Tensor:
        return self.embed(descriptors).expand_as(units)


def build(dim: int, n_descriptors: int) -> nn.Module:
    return Place(dim, n_descriptors)
