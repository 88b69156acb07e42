import pytest
import torch
from torch import nn

from synthnet.engine.network import Network
from synthnet.nets.chain import UntraceableError, trace
from synthnet.nets.start import init_scale
from synthnet.nets.weights import WeightSpec


def _symmetry(task):
    return task.network.symmetry


def _draw_permutations(symmetry):
    return {group: torch.randperm(size) for group, size in symmetry.groups.items()}


def test_permuting_hidden_units_leaves_the_function_unchanged_and_half_a_permutation_does_not(deep):
    symmetry, weights = _symmetry(deep), deep.draw_start("val", [0, 1])
    inputs = deep.examples("val")[0][:32]
    torch.manual_seed(0)
    permutations = _draw_permutations(symmetry)
    before = deep.network.logits(weights, inputs)
    assert torch.allclose(deep.network.logits(symmetry.permute(weights, permutations), inputs), before, atol=1e-5)
    broken = deep.network.spec.unflatten(weights)
    broken = {**broken, "fc2.weight": broken["fc2.weight"][:, permutations["hidden2"]]}  # rows only, not the columns above
    assert not torch.allclose(deep.network.logits_of(broken, inputs), before, atol=1e-3)


def test_alignment_undoes_a_permutation(deep):
    symmetry, weights = _symmetry(deep), deep.draw_start("val", [0])[0]
    torch.manual_seed(1)
    shuffled = symmetry.permute(weights, _draw_permutations(symmetry))
    assert not torch.equal(shuffled, weights)
    aligned, _ = symmetry.align(shuffled, weights)
    assert torch.equal(aligned, weights)


def test_alignment_never_moves_nets_apart(deep):
    symmetry, nets = _symmetry(deep), deep.draw_start("val", [0, 1])
    aligned, _ = symmetry.align(nets[0], nets[1])
    assert (aligned - nets[1]).norm() <= (nets[0] - nets[1]).norm()


def test_balancing_keeps_the_function_and_undoes_rescaling(deep):
    symmetry, weights = _symmetry(deep), deep.draw_start("val", [0, 1])
    inputs = deep.examples("val")[0][:32]
    tensors = {name: value.clone() for name, value in deep.network.spec.unflatten(weights).items()}
    tensors["fc1.weight"] *= 4  # relu(4x)/4 = relu(x)
    tensors["fc1.bias"] *= 4
    tensors["fc2.weight"] /= 4
    rescaled = deep.network.spec.flatten(tensors)
    assert torch.allclose(deep.network.logits(rescaled, inputs), deep.network.logits(weights, inputs), atol=1e-5)
    assert torch.allclose(symmetry.balance(rescaled), symmetry.balance(weights), atol=1e-4)
    balanced = deep.network.spec.unflatten(symmetry.balance(weights))
    incoming = balanced["fc1.weight"].square().sum(-1) + balanced["fc1.bias"].square()
    assert torch.allclose(incoming, balanced["fc2.weight"].square().sum(-2), rtol=1e-3)


def test_units_that_are_not_relu_are_not_rescaled():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    net = Network(module)
    weights = torch.randn(2, net.spec.n_weights)
    assert torch.equal(net.symmetry.balance(weights), weights)


def test_scale_is_torchs_initial_bound():
    """Start weights divided by the scale fill [-1, 1]; a wrong fan-in would show at once."""
    module = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 100))
    spec = WeightSpec.of_module(module)
    scaled = spec.unflatten(spec.flatten(module.state_dict()) / init_scale(spec))
    for value in scaled.values():
        assert 0.9 < value.abs().max() <= 1.0001


def test_chains_of_other_modules_are_traced():
    chain = trace(
        nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 5, bias=False), nn.Sigmoid(), nn.Linear(5, 2))
    )
    assert [(layer.n_in, layer.n_out, layer.activation) for layer in chain.layers] == [
        (4, 6, "gelu"),
        (6, 5, "sigmoid"),
        (5, 2, None),
    ]
    assert chain.layers[1].bias is None


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.b(x + torch.relu(self.a(x)))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.a(x) * self.scale


@pytest.mark.parametrize(
    "module",
    [
        Residual(),
        Scaled(),
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)),
        nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1), nn.Linear(4, 4)),
        nn.Sequential(nn.Linear(4, 4), nn.ReLU()),
        nn.Conv2d(1, 1, 3),
    ],
)
def test_what_is_not_a_chain_is_refused_by_name(module):
    with pytest.raises(UntraceableError, match="cannot trace"):
        trace(module)
