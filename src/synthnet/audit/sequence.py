"""Generated weight-state sequences beside the real states of held-out runs from the same starts: accuracy, distance, direction.

A sequence is not a reconstruction of a training trajectory, and nearness to one is no goal; this says how far it resembles one.
"""

import torch
from torch import Tensor

from synthnet.engine import Network, score

WHOLE = "all weights"


def compare_sequences(network: Network, made: Tensor, real: Tensor, inputs: Tensor, labels: Tensor) -> dict:
    """Sequences W1..WK [net step weights] against the states of real runs [net state weights] from the same starts (state 0).

    Returns accuracies by step and by state; and for all weights and for each tensor the mean L2 distance [step][state], and the
    mean cosine of displacements from the start [step][state from 1 on].
    """
    flat = lambda states: score(network, states.flatten(0, 1), inputs, labels)[0].view(states.shape[:2]).mean(0).tolist()  # noqa: E731
    parts = {WHOLE: slice(None), **network.spec.slices()}
    moved, trained = made - real[:, :1], real[:, 1:] - real[:, :1]
    layers = {}
    for name, place in parts.items():
        distance = torch.cdist(made[:, :, place], real[:, :, place]).mean(0)
        unit = [torch.nn.functional.normalize(x[:, :, place], dim=-1) for x in (moved, trained)]
        layers[name] = {"distance": distance.tolist(), "cosine": (unit[0] @ unit[1].transpose(1, 2)).mean(0).tolist()}
    return {"accuracy_by_step": flat(made), "accuracy_by_state": flat(real), "layers": layers}


def nearest_states(report: dict) -> list[int]:
    """For each step, the real state that a sequence is nearest to on average."""
    return [min(range(len(row)), key=row.__getitem__) for row in report["layers"][WHOLE]["distance"]]
