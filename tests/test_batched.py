"""The population engine: every backend gives the numbers of the plain loop, forward, backward and through training."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from synthnet.engine import Recipe
from synthnet.engine.gradients import DERIVATIVES, chain_gradients
from synthnet.engine.network import BACKENDS, Network
from synthnet.engine.objective import cross_entropy
from synthnet.engine.plan import Plan
from synthnet.engine.population import Training, batch_orders, train_population
from synthnet.engine.scoring import score
from synthnet.errors import InputError
from synthnet.nets import modules
from synthnet.nets.arch import Arch
from synthnet.nets.start import draw_init


class Odds(nn.Module):
    """Operations without a rule of their own; depthwise and strided convolutions, average pooling, concatenation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.pool, self.relu, self.norm = nn.AvgPool2d(2), nn.ReLU(), nn.BatchNorm2d(6)
        self.fc = nn.Linear(24, 4)

    def forward(self, x):
        x = self.relu(self.stem(x.view(x.shape[0], 1, 8, 8)))
        x = torch.cat([self.pool(self.norm(self.depthwise(x))), x[:, :, ::2, ::2]], dim=1)
        return self.fc(F.leaky_relu(x.mean(3)).flatten(1)) * 2 - 1


class Words(nn.Module):
    """Embedding, torch's own multi-head attention, LayerNorm, mean over tokens."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.attention, self.fc = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(self.embed(x))
        return self.fc((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))


IMAGES = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
CASES = {
    "mlp": (modules.MLP([64, 12, 7, 5]), IMAGES),
    "tanh": (nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 6, bias=False), nn.Sigmoid(), nn.Linear(6, 3)), IMAGES),
    "cnn": (modules.CNN(8, [1, 4, 6], 5), IMAGES),
    "resnet": (modules.ResNet(8, 8, 2, 4), IMAGES),
    "resnet18": (modules.ResNet18(8, 2, 1, 3), IMAGES),
    "vit": (modules.ViT(8, 4, 8), IMAGES),
    "odds": (Odds(), IMAGES),
    "words": (Words(), torch.randint(11, (8, 5), generator=torch.Generator().manual_seed(0))),
    "batchnorm": (nn.Sequential(nn.Linear(64, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)), IMAGES),
}


def population(name, n_nets=3):
    module, inputs = CASES[name]
    net = Network(module)
    draw = torch.Generator().manual_seed(1)
    flat = torch.stack([draw_init(net.spec, draw) for _ in range(n_nets)])
    return net, flat + 0.05 * torch.rand(flat.shape, generator=draw), inputs


@pytest.mark.parametrize("own_inputs", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_backends_agree_forward_and_backward(name, own_inputs):
    """To 1e-5. A rule that mixes two nets' channels, or forgets a bias, breaks this."""
    net, flat, inputs = population(name)
    if own_inputs:
        inputs = torch.stack([inputs, inputs.flip(0), inputs.roll(1, 0)])
    labels = torch.arange(8) % 3
    outputs, gradients = {}, {}
    for backend in BACKENDS:
        tensors = net.spec.unflatten(flat.clone())
        leaves = [tensors[t.name].requires_grad_() for t in net.spec.floats if t.role == "parameter"]
        outputs[backend] = net.logits_of(tensors, inputs, backend, own_inputs)
        found = torch.autograd.grad(cross_entropy(outputs[backend], labels).sum(), leaves)
        gradients[backend] = torch.cat([g.flatten() for g in found])
    assert outputs["loop"].shape[:2] == (3, 8)
    for backend in ("batched", "vmap"):
        assert torch.allclose(outputs[backend], outputs["loop"], atol=1e-5)
        assert torch.allclose(gradients[backend], gradients["loop"], atol=1e-5)
    assert net.backends(inputs, own_inputs) == BACKENDS


@pytest.mark.parametrize("name", ["mlp", "tanh"])
@pytest.mark.parametrize("own_inputs", [False, True])
def test_closed_form_gradients_are_those_of_autograd(name, own_inputs):
    net, flat, inputs = population(name)
    inputs = torch.stack([inputs, inputs.flip(0), inputs.roll(1, 0)]) if own_inputs else inputs
    n_classes = net.logits(flat, inputs, own_inputs=own_inputs).shape[-1]
    targets = torch.softmax(torch.randn(*inputs.shape[:-1], n_classes, generator=torch.Generator().manual_seed(2)), -1)
    leaves = {k: v.clone().requires_grad_() for k, v in net.spec.unflatten(flat).items()}
    cross_entropy(net.logits_of(leaves, inputs, "loop", own_inputs), targets).sum().backward()
    written = {k: torch.full_like(v, torch.nan) for k, v in leaves.items()}
    chain_gradients(net.chain, net.spec.unflatten(flat), inputs, targets, written)
    for key, leaf in leaves.items():
        assert torch.allclose(written[key], leaf.grad, atol=1e-6), key
    assert {layer.activation for layer in population("tanh")[0].chain.layers} - {None} <= set(DERIVATIVES)


@pytest.mark.parametrize("per_run_order", [False, True])
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet", "vit", "batchnorm"])
def test_training_by_any_plan_gives_the_nets_of_plain_pytorch(name, per_run_order):
    """Adam by hand on each net alone, module by module. Also says that running statistics of BatchNorm are trained along."""
    net, flat, inputs = population(name)
    labels, recipe = torch.arange(8) % 3, Recipe(1e-2, 4, 2)
    training, ids = Training(recipe, 3, per_run_order), [0, 1, 2]
    expected = [_plain(CASES[name][0], net, w, inputs, labels, training, i) for w, i in zip(flat, ids, strict=True)]
    for plan in (Plan("batched", 3, 1), Plan("batched", 1, 2), Plan("loop", 2, 1)):
        found = train_population(net, flat, inputs, labels, training, [0, 2], ids, plan)
        assert torch.equal(found[:, 0], flat)
        # compared by what they compute: Adam blows up the rounding of gradients that are zero, like those of a key's bias
        assert torch.allclose(net.logits(found[:, 1], inputs), net.logits(torch.stack(expected), inputs), atol=1e-3), plan


def _plain(module, net, weights, inputs, labels, training, run):
    module = copy.deepcopy(module).train()
    module.load_state_dict(net.spec.unflatten(weights), strict=False)
    optimizer = torch.optim.Adam(module.parameters(), lr=training.recipe.learning_rate)
    for epoch in (1, 2):
        order = batch_orders(training, epoch, len(inputs), [run])
        for chosen in (order[0] if training.per_run_order else order).split(4):
            optimizer.zero_grad()
            F.cross_entropy(module(inputs[chosen]), labels[chosen]).backward()
            optimizer.step()
    return net.spec.flatten(module.state_dict())


def test_a_module_that_cannot_be_traced_is_served_by_the_loop():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 3)

        def forward(self, x):
            return self.fc(x) if self.fc.bias.sum() > 0 else self.fc(-x)

    net = Network(Branching())
    weights = torch.randn(2, net.spec.n_weights, generator=torch.Generator().manual_seed(0))
    assert net.batched is None
    assert net.backends(IMAGES) == ("loop",)
    assert score(net, weights, IMAGES, torch.zeros(8, dtype=torch.long))[0].shape == (2,)


def test_a_rule_that_disagrees_is_not_used(monkeypatch):
    """Control for the check that every backend passes before its first use."""
    from synthnet.engine import rules as population_rules

    net, _, inputs = population("cnn")
    wrong = lambda call, value: value._replace(data=population_rules._pool(call, value).data + 0.1)  # noqa: E731
    monkeypatch.setitem(population_rules.RULES, nn.MaxPool2d, wrong)
    assert net.backends(inputs) == ("vmap", "loop")


def test_bfloat16_scores_are_close_and_ruined_nets_or_rounding_do_not_choose_the_backend():
    net, flat, inputs = population("mlp")
    score(net, torch.full_like(flat, torch.nan), inputs.bfloat16(), torch.arange(8) % 5, dtype=torch.bfloat16)
    assert net.backends(inputs) == BACKENDS
    exact, rough = (score(net, flat, inputs, torch.arange(8) % 5, dtype=d)[1] for d in (torch.float32, torch.bfloat16))
    assert 0 < (exact - rough).abs().max() < 0.02


def test_norms_start_as_the_identity_and_others_within_their_bound():
    net = Network(nn.Sequential(nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)))
    start = net.spec.unflatten(draw_init(net.spec, torch.Generator().manual_seed(0)))
    assert start["1.weight"].eq(1).all() and start["1.running_var"].eq(1).all()
    assert not start["1.bias"].any() and not start["1.running_mean"].any()
    assert 0.1 < start["0.weight"].abs().max() <= 1 / 8 and start["2.bias"].abs().max() <= 6**-0.5


@pytest.mark.parametrize(
    ("builder", "kwargs"),
    [
        ("cnn", {"side": 3, "channels": [1, 4, 4, 4, 4]}),
        ("resnet", {"side": 8, "width": 6, "groups": 4}),
        ("resnet", {"side": 8, "width": 8, "blocks": 10_000}),
        ("resnet", {"side": 8, "width": 8, "blocks": -1}),
        ("resnet", {"side": 8, "width": 8, "pool": 3}),
        ("resnet18", {"width": 0}),
        ("vit", {"side": 8, "patch": 3, "dim": 8}),
        ("vit", {"side": 8, "patch": 4, "dim": 9}),
    ],
)
def test_impossible_networks_are_refused(builder, kwargs):
    with pytest.raises(InputError):
        Arch.from_dict({"builder": builder, "kwargs": kwargs})
