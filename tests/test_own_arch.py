"""Architectures of modules of the user's own: traced, recorded as data, recognised in files."""

import json

import pytest
import torch
from torch import nn

from synthnet.engine import Network, arch_of, by_shapes
from synthnet.errors import InputError
from synthnet.nets import Arch, UntraceableError, WeightSpec
from synthnet.policy import Policy, PolicyConfig


class Recurrent(nn.Module):
    def __init__(self, kind=nn.GRU, **settings):
        super().__init__()
        self.rnn = kind(3, 4, batch_first=True, **settings)
        self.fc = nn.Linear(8 if settings.get("bidirectional") else 4, 2)

    def forward(self, x):
        return self.fc(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize("settings", [{}, {"num_layers": 2}, {"bidirectional": True}, {"bias": False}])
def test_a_recurrent_unit_is_one_unit_through_all_gates_and_time(kind, settings):
    torch.manual_seed(0)
    module, x = Recurrent(kind, **settings), torch.randn(6, 5, 3)
    network = Network(module, x[:2])
    assert set(network.symmetry.groups.values()) == {4}
    assert len(network.symmetry.groups) == 2 if settings.get("num_layers") or settings.get("bidirectional") else 1
    assert network.backends(x)[0] == "batched"
    flat = torch.stack([network.spec.flatten(Recurrent(kind, **settings).state_dict()) for _ in range(3)])
    expected = network.logits(flat, x, "loop")
    assert torch.allclose(network.logits(flat, x, "batched"), expected, atol=1e-5)
    moved = network.symmetry.permute(flat, network.symmetry.random(torch.Generator().manual_seed(1)))
    assert not torch.equal(moved, flat)
    assert torch.allclose(network.logits(moved, x), expected, atol=1e-5)


def test_an_architecture_of_ones_own_is_data_and_comes_back_bounded():
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 6), nn.Tanh(), nn.Linear(6, 3)
    )
    made = arch_of(module, torch.randn(4, 1, 8, 8))
    told = json.loads(json.dumps(made.to_dict()))
    back = Arch.from_dict(told)
    assert back == made
    assert made.activations == ["relu", "tanh"]
    net, symmetry = Network(module, torch.randn(2, 1, 8, 8)), back.symmetry()
    assert [(piece.tensor, piece.groups) for piece in symmetry.pieces] == [(p.tensor, p.groups) for p in net.symmetry.pieces]
    assert all(torch.equal(a.index, b.index) for a, b in zip(symmetry.pieces, net.symmetry.pieces, strict=True))
    assert symmetry.scalable == net.symmetry.scalable
    with pytest.raises(InputError, match=r"pass --task FILE.py:NAME"):
        back.skeleton()
    policy = Policy.create(PolicyConfig(), [back], 0)
    assert policy.layout(Network(None, None, back)).n_weights == made.spec().n_weights
    for key, value in (
        ("axes", [["0.weight", [[["evil", 4]]]]]),
        ("tensors", [["0.weight", [-1], "parameter", False]]),
        ("outputs", "x"),
    ):
        with pytest.raises(InputError, match="malformed"):
            Arch.from_dict({**told, "kwargs": {**told["kwargs"], key: value}})


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.a(x) if x.sum() > 1e9 else torch.relu(self.a(x)))


def test_what_cannot_be_traced_says_so_and_has_no_unit_groups():
    arch = arch_of(Branching(), torch.randn(4, 5))
    assert "untraced" in arch.kwargs
    with pytest.raises(UntraceableError, match="Branching"):
        Arch.from_dict(arch.to_dict()).symmetry()


def test_names_are_matched_by_shape_where_one_assignment_fits():
    ours = WeightSpec.of_module(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    numbered = {
        f"layers.{2 * k}.{n}": torch.zeros(s) for k, w in ((1, 3), (5, 4)) for n, s in (("weight", (4, w)), ("bias", (4,)))
    }
    theirs = WeightSpec.of_tensors({**numbered, "head.weight": torch.zeros(2, 4), "head.bias": torch.zeros(2)})
    found = by_shapes(ours, theirs, "it")
    assert found["0.bias"], found["2.bias"] == ("layers.2.bias", "layers.10.bias")
    assert found["4.weight"] == "head.weight"
    named = {"left.weight": torch.zeros(4, 4), "right.weight": torch.zeros(4, 4)}
    with pytest.raises(InputError, match=r"left.weight and right.weight could be exchanged"):
        by_shapes(WeightSpec.of_tensors({"a": torch.zeros(4, 4), "b": torch.zeros(4, 4)}), WeightSpec.of_tensors(named), "it")
    assert by_shapes(ours, WeightSpec.of_tensors(named), "it") is None


def test_running_variances_stay_positive_whatever_a_policy_does():
    """A negative one gave NaN, and guards rolled back for ever."""
    module = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    arch = arch_of(module, torch.randn(4, 5))
    policy = Policy.create(PolicyConfig(), [arch], 0)
    for parameter in policy.trunk.head.parameters():
        nn.init.normal_(parameter, std=20.0)
    made = policy.synthesize(module.state_dict(), steps=3)
    assert made["1.running_var"].min() > 0
    assert made["1.running_mean"].min() < 0, "nothing else is touched"
    module.load_state_dict(made)
    assert torch.isfinite(module.eval()(torch.randn(8, 5))).all()
