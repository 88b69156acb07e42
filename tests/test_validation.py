"""What stages choose their best policy by."""

import math

import pytest
import torch

from synthnet.tasks.twins import grow_twins
from synthnet.train.validation import Validation


def test_a_loss_above_that_of_guessing_counts_as_guessing(tiny):
    """Nets that are right and far too sure of it go before nets that know nothing; without the bound their loss would hide it.
    Below it, the loss breaks ties."""
    validation = Validation.of_task(tiny, 4, [1], torch.device("cpu"))
    start = validation.starts[0]
    good = grow_twins(tiny, start)
    sure = good.clone()
    sure[:, tiny.network.spec.slices()["fc2.weight"]] *= 100
    scores = {name: validation.metrics({1: [nets]}) for name, nets in {"start": start, "good": good, "sure": sure}.items()}
    assert scores["sure"]["loss_k1"] > 4
    assert scores["start"]["score"] < scores["sure"]["score"] < scores["good"]["score"]
    assert scores["sure"]["score"] == pytest.approx(scores["sure"]["accuracy_k1"] - 0.1 * math.log(10))
