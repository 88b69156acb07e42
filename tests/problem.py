"""A small problem of a user's own, in Python and as a file."""

import numpy as np
from torch import nn

PROBLEM = """
import numpy as np
import synthnet
import torch
from torch import nn

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(120, 5)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] > 0).astype(int)

def net(): return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))
def sides(): return synthnet.Task(module=net, data=synthnet.Data(X, Y))
def calm():
    def returns(nets, draw):
        assert len(nets) == len(nets.weights["0.weight"])
        return -nets(torch.randn(16, 5, generator=draw)).square().mean((1, 2))
    return synthnet.Task(module=net, reward=returns, example=torch.zeros(1, 5))
def nan(nets, draw): return torch.full((len(nets),), float("nan"))
def broken(): return synthnet.Task(module=net, reward=nan, example=torch.zeros(1, 5))
def flat(): return synthnet.Task(module=net, reward=lambda nets, draw: torch.zeros(len(nets)), example=torch.zeros(1, 5))
"""


def blobs(n: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, 5)).astype(np.float32)
    return x, (x[:, 0] + x[:, 1] > 0).astype(int)


def net(n_out: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, n_out))
