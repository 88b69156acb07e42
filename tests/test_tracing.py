"""Unit groups of any module, verified by value: what may be permuted leaves the outputs alone, what may not changes them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from synthnet.engine.network import Network
from synthnet.nets import modules
from synthnet.nets.axes import UntraceableError
from synthnet.nets.start import draw_init, init_scale


class Residual(nn.Module):
    """Strided, depthwise and grouped convolutions, BatchNorm, a residual sum, a concatenation, a flatten."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.point = nn.Conv2d(6, 6, 1, bias=False)
        self.side = nn.Conv2d(1, 4, 3, stride=1, padding=1)
        self.grouped = nn.Conv2d(10, 8, 3, stride=2, padding=1, groups=2)
        self.fc = nn.Linear(8 * 4 * 4, 3)

    def forward(self, x):
        x = x.view(-1, 1, 8, 8)
        y = torch.relu(self.norm(self.stem(x)))
        y = y + self.point(F.silu(self.depthwise(y)))
        return self.fc(torch.flatten(F.gelu(self.grouped(torch.cat([y, self.side(x)], 1))), 1))


class Tied(nn.Module):
    """Embedding, positions, torch's fused attention, LayerNorm, and output weights tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.embed, self.position = nn.Embedding(7, 8), nn.Parameter(torch.randn(5, 8))
        self.attention, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        x = self.embed(x) + self.position
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(x).mean(1)


class Odd(nn.Module):
    """An operation that no rule covers, and whose units cannot be permuted."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(torch.cumsum(self.a(x), 1))


IMAGES, WORDS = torch.zeros(2, 64), torch.arange(10).view(2, 5) % 7
CASES = {
    "cnn": (modules.CNN(8, [1, 4, 6], 5), IMAGES, {"hidden1": 4, "hidden2": 6}),
    "resnet": (modules.ResNet(8, 8, 2, 4), IMAGES, None),
    "resnet18": (modules.ResNet18(8, 2, 1, 3), IMAGES, None),
    "vit": (modules.ViT(8, 4, 8), IMAGES, None),
    "residual": (Residual(), IMAGES, None),
    "conv1d": (
        nn.Sequential(nn.Conv1d(2, 6, 3, stride=2), nn.ReLU(), nn.Conv1d(6, 4, 3), nn.Flatten(), nn.Linear(4 * 5, 3)),
        torch.zeros(2, 2, 16),
        {"hidden1": 6, "hidden2": 4},
    ),
    "batchnorm": (nn.Sequential(nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)), IMAGES, {"hidden1": 6}),
    "tied": (Tied(), WORDS, None),
}


def traced(name):
    module, example, _ = CASES[name]
    net = Network(module, example)
    draw = torch.Generator().manual_seed(0)
    flat = torch.stack([draw_init(net.spec, draw) for _ in range(2)])
    flat = flat + 0.2 * torch.rand(flat.shape, generator=draw) * init_scale(net.spec)
    inputs = torch.randn(example.shape, generator=draw) if example.is_floating_point() else example
    return net, flat, inputs, draw


@pytest.mark.parametrize("name", CASES)
def test_the_groups_found_can_be_permuted_and_each_of_them_matters(name):
    """Control per group: moving its units along only one of the axes it has must change the outputs."""
    net, flat, inputs, draw = traced(name)
    symmetry = net.symmetry
    expected = CASES[name][2]
    assert expected is None or dict(symmetry.groups) == expected
    assert symmetry.groups
    before = net.logits(flat, inputs, "loop")
    permutations = symmetry.random(draw)
    assert not torch.equal(symmetry.permute(flat, permutations), flat)
    assert torch.allclose(net.logits(symmetry.permute(flat, permutations), inputs, "loop"), before, atol=1e-5)
    for group, size in symmetry.groups.items():
        shifted = symmetry.identity() | {group: symmetry.identity()[group].roll(1, -1)}
        assert torch.allclose(net.logits(symmetry.permute(flat, shifted), inputs, "loop"), before, atol=1e-5), group
        order = net.spec.positions()
        piece, axis = next((p, a) for p in symmetry.pieces for a, g in enumerate(p.groups) if g == group and p.index.ndim > 1)
        order[piece.index] = piece.index.roll(1, axis)
        assert size > 1
        assert not torch.allclose(net.logits(flat[:, order], inputs, "loop"), before, atol=1e-4), group


def test_channels_of_a_group_norm_and_dims_of_a_head_move_only_within_their_block():
    """Control: a permutation across blocks, of all the tensors that share the axis, changes the outputs."""
    for name, blocks in (("resnet", {4: 2}), ("vit", {2: 4})):
        net, flat, inputs, _ = traced(name)
        symmetry = net.symmetry
        assert symmetry.inner, name
        before = net.logits(flat, inputs, "loop")
        for inner, outer in symmetry.inner.items():
            n_outer, n_inner = symmetry.groups[outer], symmetry.groups[inner]
            assert blocks[n_outer] == n_inner
            order = net.spec.positions()
            for piece in symmetry.pieces:
                for axis, group in enumerate(piece.groups):
                    if group == inner:  # roll both axes as one
                        whole = piece.index.flatten(axis - 1, axis).roll(1, axis - 1)
                        order[piece.index.reshape(-1)] = whole.unflatten(axis - 1, (n_outer, n_inner)).reshape(-1)
            assert not torch.allclose(net.logits(flat[:, order], inputs, "loop"), before, atol=1e-4), (name, inner)


def test_tied_tensors_move_together():
    net, flat, _, draw = traced("tied")
    symmetry = net.symmetry
    moved = net.spec.unflatten(symmetry.permute(flat, symmetry.random(draw)))
    before = net.spec.unflatten(flat)
    assert not torch.equal(moved["embed.weight"], before["embed.weight"])
    orders = [(moved[n][0, 0, :, None] == before[n][0, 0]).nonzero()[:, 1].tolist() for n in ("embed.weight", "head.weight")]
    assert orders[0] == orders[1]


def test_relu_units_can_be_rescaled_and_normed_or_squashed_ones_cannot():
    assert traced("cnn")[0].symmetry.scalable == {"hidden1", "hidden2"}
    assert not traced("batchnorm")[0].symmetry.scalable
    assert not traced("residual")[0].symmetry.scalable


@pytest.mark.parametrize("name", ["cnn", "resnet", "vit"])
def test_alignment_undoes_a_permutation_of_any_network(name):
    net, flat, _, draw = traced(name)
    shuffled = net.symmetry.permute(flat[0], net.symmetry.random(draw))
    aligned, _ = net.symmetry.align(shuffled, flat[0])
    start, end = (shuffled - flat[0]).norm(), (aligned - flat[0]).norm()
    assert end == 0 if name == "cnn" else end < 0.7 * start


def test_what_has_no_rule_is_named():
    with pytest.raises(UntraceableError, match="cumsum"):
        _ = Network(Odd(), IMAGES).symmetry


def test_control_flow_is_refused_with_a_reason():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 3)

        def forward(self, x):
            return self.fc(x) if x.sum() > 0 else self.fc(-x)

    with pytest.raises(UntraceableError, match="cannot trace Branching"):
        _ = Network(Branching(), IMAGES).symmetry


def test_a_wrong_rule_is_caught_by_the_check(monkeypatch):
    """Control for the numerical check: cumsum taken for an element-wise operation."""
    from synthnet.nets import rules as axis_rules

    monkeypatch.setitem(axis_rules.RULES, torch.ops.aten.cumsum, axis_rules._same)
    with pytest.raises(UntraceableError, match="changes its outputs"):
        _ = Network(Odd(), IMAGES).symmetry
