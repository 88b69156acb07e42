"""What examples feel, and its score: the estimator against the pathwise gradient of the same smoothed reward, with negative
controls."""

import pytest
import torch
from torch import Tensor, nn

from synthnet.engine.network import Network
from synthnet.errors import InputError
from synthnet.grpo import GrpoConfig, RewardConfig
from synthnet.grpo.draws import Draws
from synthnet.grpo.example import advantages_of, others_baseline, rewards_of
from synthnet.grpo.felt import feel, noisy_layers
from synthnet.grpo.rules import _pools_whole, plain
from synthnet.grpo.scored import Seen
from synthnet.nets import draw_init, init_scale
from synthnet.seeds import generator

SMOOTH, RIGHT = RewardConfig(accuracy=0.0, bounded_loss=1.0), RewardConfig(accuracy=1.0, bounded_loss=0.0)
CLASSES, N = 3, 6


class Sequences(nn.Module):
    """Ids through an embedding, positions, a norm, a layer over tokens."""

    def __init__(self):
        super().__init__()
        self.table, self.position = nn.Embedding(5, 4), nn.Parameter(torch.zeros(3, 4))
        self.norm, self.mix, self.out = nn.LayerNorm(4), nn.Linear(4, 5), nn.Linear(5, CLASSES)

    def forward(self, x):
        x = self.norm(self.table(x) + self.position)
        return self.out(torch.tanh(self.mix(x)).mean(1))


def _chain():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES, bias=False))


def _conv2d():
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.GroupNorm(1, 2), nn.Tanh(), nn.Flatten(), nn.Linear(32, CLASSES))


def _conv1d():
    return nn.Sequential(nn.Conv1d(2, 3, 2, stride=2), nn.BatchNorm1d(3), nn.Tanh(), nn.Flatten(), nn.Linear(6, CLASSES))


MODULES = {
    "chain": (_chain, (4,), "auto"),
    "convolution": (_conv2d, (1, 4, 4), "auto"),
    "convolution over time": (_conv1d, (2, 4), "auto"),
    "tokens, joint": (Sequences, None, "auto"),
    "tokens, tied": (Sequences, None, "tied"),
    "convolution, tied": (_conv2d, (1, 4, 4), "tied"),
    "convolution over time, tied": (_conv1d, (2, 4), "tied"),
    "tokens, flipout": (Sequences, None, "flipout"),
}


def _case(build, shape):
    """A net, what it sees, mean weights and noise of unlike size for each tensor."""
    draw = torch.Generator().manual_seed(3)
    inputs = torch.randint(5, (N, 3), generator=draw) if shape is None else torch.randn((N, *shape), generator=draw)
    net = Network(build(), inputs[:2])
    labels = torch.arange(N) % CLASSES
    mean, scale = draw_init(net.spec, draw), init_scale(net.spec).clone()
    for name, place in net.spec.slices().items():
        if name.endswith("running_var"):
            mean[place] = 1.0
        scale[place] *= 0.2 + 0.2 * torch.rand((), generator=draw)
    return net, mean, scale, inputs, labels


def _estimate(case, reward, uses="auto", group=512, seed=0, control=None, layers=None) -> Tensor:
    """The estimate of the gradient with respect to the mean weights."""
    net, mean, sigma, inputs, labels = case
    draw = generator(seed, "grpo-example", 0, 0)
    outputs, score = feel(net, mean, sigma, inputs, Draws(group, len(inputs), uses, draw, layers))
    rewards = rewards_of(Seen(outputs, labels, net.objective), reward)
    advantages = others_baseline(rewards)
    if control:
        advantages = advantages_of(rewards, GrpoConfig(control=control), draw)[0] * advantages.square().mean().sqrt()
    change = torch.zeros_like(mean).requires_grad_()
    return torch.autograd.grad((advantages.flatten() * score.level(net.spec.unflatten(change))).mean(), change)[0]


def _pathwise(case, draws=512) -> Tensor:
    """The gradient through the net of the mean bounded loss of nets drawn whole, one for each example."""
    net, mean, sigma, inputs, labels = case
    mean, total, draw = mean.clone().requires_grad_(), 0.0, torch.Generator().manual_seed(5)
    still = torch.ones_like(mean)
    for name, place in net.spec.slices().items():
        still[place] = 0.0 if "running" in name else 1.0  # statistics have no noise
    half = torch.randn((draws * N // 2, len(mean)), generator=draw)
    nets = mean + still * sigma * torch.cat([half, -half])
    tensors = {n: each.detach() if "running" in n else each for n, each in net.spec.unflatten(nets).items()}
    outputs = net.logits_of(tensors, inputs.repeat(draws, *(1,) * (inputs.ndim - 1)).unsqueeze(1), own_inputs=True)[:, 0]
    loss = torch.nn.functional.cross_entropy(outputs, labels.repeat(draws), reduction="none")
    total = (1 - loss.clamp(max=2 * net.objective.chance) / net.objective.chance).mean()
    return torch.autograd.grad(total, mean)[0] * still


def _along(estimates: list[Tensor], exact: Tensor) -> tuple[float, float]:
    """How long estimates are along the exact gradient, in its own length: mean and standard error."""
    along = torch.stack([estimate @ exact / exact.square().sum() for estimate in estimates])
    return along.mean().item(), along.std().item() / len(along) ** 0.5


@pytest.mark.parametrize("name", MODULES)
def test_its_mean_is_the_pathwise_gradient_of_the_smoothed_reward(name):
    """Of the whole, and of every tensor by itself that is felt at all."""
    build, shape, uses = MODULES[name]
    case = _case(build, shape)
    exact, estimates = _pathwise(case), [_estimate(case, SMOOTH, uses, seed=seed) for seed in range(16)]
    mean, error = _along(estimates, exact)
    assert mean == pytest.approx(1, abs=4 * error + 0.05)
    assert error < 0.1
    for name, place in case[0].spec.slices().items():
        if uses == "auto" and exact[place].norm() > 0.05 * exact.norm():
            mean, error = _along([each[place] for each in estimates], exact[place])
            assert mean == pytest.approx(1, abs=4 * error + 0.15), name
            assert error < 0.5, name


@pytest.mark.parametrize("name", ["chain", "convolution", "tokens, joint"])
@pytest.mark.parametrize("which", ["last", "one"])
def test_noise_in_one_layer_is_felt_there_alone(name, which):
    """Its gradient there is that of nets whose other layers are as they are; elsewhere it is zero."""
    net, mean, sigma, inputs, labels = _case(*MODULES[name][:2])
    (layer,) = layers = noisy_layers(net, which, generator(0, "layers"))
    inside = torch.zeros_like(mean)
    for tensor, place in net.spec.slices().items():
        inside[place] = float(tensor.startswith(f"{layer}."))
    case = net, mean, sigma * inside, inputs, labels
    exact = _pathwise(case) * inside
    estimates = [_estimate((net, mean, sigma, inputs, labels), SMOOTH, group=2048, layers=layers, seed=s) for s in range(16)]
    assert all((each * (1 - inside)).abs().max() == 0 for each in estimates)
    mean_, error = _along(estimates, exact)
    assert mean_ == pytest.approx(1, abs=4 * error + 0.05)
    assert mean_ > 3 * error


@pytest.mark.parametrize("layers", ["all", "one"])
@pytest.mark.parametrize("name", MODULES)
def test_the_slope_of_what_was_felt_is_that_of_its_level(name, layers):
    """At no change of the weights, for every layer, whether its inputs are shared by all draws or not."""
    build, shape, uses = MODULES[name]
    net, mean, sigma, inputs, _ = _case(build, shape)
    for turn in range(3):
        draw = generator(turn, "slope")
        draws = Draws(4, N, uses, draw, noisy_layers(net, layers, draw))
        score = feel(net, mean, sigma, inputs, draws)[1]
        weights, change = torch.randn(4 * N, generator=draw), torch.zeros_like(mean).requires_grad_()
        exact = torch.autograd.grad((weights * score.level(net.spec.unflatten(change))).sum(), change)[0]
        found = net.spec.scattered(score.slope(weights), mean)
        assert exact.abs().max() > 0
        assert torch.allclose(found, exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))


def test_layers_take_turns():
    net = _case(*MODULES["convolution"][:2])[0]
    for which in ("one", None):
        seen = {noisy_layers(net, which, generator(0, "layers", update)) for update in range(32)}
        assert len(seen) == len({name.rpartition(".")[0] for name in net.spec.slices()})
    assert noisy_layers(net, "all", generator(0, "layers")) is None
    assert noisy_layers(_case(*MODULES["chain"][:2])[0], None, generator(0, "layers")) is None, "all of an MLP"
    tokens = _case(*MODULES["tokens, joint"][:2])[0]
    seen = {noisy_layers(tokens, "one", generator(0, "layers", update)) for update in range(64)}
    assert seen == {frozenset({name}) for name in ("table", "position", "norm", "mix", "out")}
    still = Network(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 3)), torch.zeros(2, 4))
    seen = {noisy_layers(still, "one", generator(0, "layers", update)) for update in range(32)}
    assert seen == {frozenset({"0"}), frozenset({"2"})}, "a norm without weights has nothing to learn"
    flat = draw_init(still.spec, generator(0, "still"))
    outputs, score = feel(
        still, flat, 0.1 * torch.ones_like(flat), torch.randn(5, 4), Draws(4, 5, "auto", generator(0, "felt"))
    )
    assert outputs.shape == (4, 5, 3)
    assert score.level(still.spec.unflatten(torch.zeros_like(flat))).abs().max() == 0


class Placed(nn.Module):
    """Positions with a leading one, as Transformers often have them."""

    def __init__(self):
        super().__init__()
        self.position, self.out = nn.Parameter(torch.zeros(1, 3, 4)), nn.Linear(12, CLASSES)

    def forward(self, x):
        return self.out((x + self.position).flatten(1))


def test_a_parameter_with_a_leading_one_meets_each_row_with_its_own_noise():
    net, inputs = Network(Placed(), torch.zeros(2, 3, 4)), torch.randn(5, 3, 4)
    mean = torch.randn(net.spec.n_weights)
    outputs, _ = feel(net, mean, 0.1 * torch.ones_like(mean), inputs, Draws(4, 5, "auto", generator(0, "x")))
    assert outputs.shape == (4, 5, CLASSES)
    quiet, _ = feel(net, mean, 1e-6 * torch.ones_like(mean), inputs, Draws(4, 5, "auto", generator(0, "x")))
    assert torch.allclose(quiet, net.logits(mean[None], inputs).expand_as(quiet), atol=1e-4)


@pytest.mark.parametrize("control", ["random", "constant"])
def test_advantages_that_know_nothing_of_the_rewards_cancel(control):
    case = _case(*MODULES["convolution"][:2])
    mean, error = _along([_estimate(case, SMOOTH, seed=seed, control=control) for seed in range(16)], _pathwise(case))
    assert abs(mean) < 4 * error + 0.05


def test_flipped_advantages_point_the_other_way():
    case = _case(*MODULES["chain"][:2])
    assert torch.allclose(_estimate(case, SMOOTH, control="flip"), -_estimate(case, SMOOTH), atol=1e-6)


def test_node_noise_has_the_tied_gradient_to_first_order():
    """An untied relaxation: small noise, a smooth net."""
    net, mean, sigma, inputs, labels = _case(*MODULES["convolution"][:2])
    case = net, mean, 0.3 * sigma, inputs, labels
    mean, error = _along([_estimate(case, SMOOTH, "node", seed=seed) for seed in range(24)], _pathwise(case))
    assert mean == pytest.approx(1, abs=4 * error + 0.1)


def test_right_or_wrong_has_no_gradient_and_is_learned_from_all_the_same():
    """Its direction is that of many nets drawn whole, each scored by what its examples got: the score-function estimate."""
    case = net, mean, sigma, inputs, labels = _case(*MODULES["chain"][:2])
    noise = torch.randn((40_000, len(mean)), generator=torch.Generator().manual_seed(7))
    right = (net.logits(mean + sigma * noise, inputs).argmax(-1) == labels).float().mean(1)
    whole = ((right - right.mean())[:, None] * noise / sigma).mean(0)
    mean_, error = _along([_estimate(case, RIGHT, seed=seed) for seed in range(16)], whole)
    assert mean_ == pytest.approx(1, abs=4 * error + 0.1)


@pytest.mark.parametrize("name", ["chain", "convolution", "tokens, joint"])
def test_the_score_is_the_log_ratio_of_what_was_felt(name):
    """Its mean over draws is minus the KL, and the mean of its exponential is one; at no change it is zero."""
    build, shape, uses = MODULES[name]
    net, mean, sigma, inputs, _ = _case(build, shape)
    _, score = feel(net, mean, sigma, inputs, Draws(20_000, N, uses, generator(0, "x")))
    change = 0.1 * sigma * torch.randn(len(mean), generator=torch.Generator().manual_seed(1))
    assert torch.equal(score.level(net.spec.unflatten(torch.zeros_like(mean))), torch.zeros(20_000 * N))
    log_ratio = score.level(net.spec.unflatten(change)).view(20_000, N)
    assert (log_ratio.exp().mean(0) - 1).abs().max() < 0.05
    assert (log_ratio.mean(0) + 0.5 * log_ratio.var(0)).abs().max() < 0.02, "a Gaussian's: mean −KL, variance 2 KL"


def test_joint_noise_has_the_moments_of_whole_draws():
    """Covariances over tokens of what a layer of tied weights gives."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(4, 2))
    inputs = torch.randn(1, 3, 4)
    net = Network(layer, inputs)
    mean, sigma = draw_init(net.spec, torch.Generator().manual_seed(0)), 0.3 * init_scale(net.spec)
    felt = {}
    for uses in ("auto", "tied"):
        outputs, _ = feel(net, mean, sigma, inputs, Draws(40_000, 1, uses, generator(0, uses)))
        felt[uses] = outputs[:, 0].flatten(1).T.cov()
    assert torch.allclose(felt["auto"], felt["tied"], atol=0.03 * felt["tied"].diagonal().max().item())


def test_flipout_has_an_examples_own_moments_and_none_between_examples():
    """Two examples with the same input: each feels what its own kernel would do, and neither tells of the other's."""
    net = Network(nn.Sequential(nn.Conv2d(2, 2, 2)), torch.zeros(1, 2, 2, 3))
    inputs = torch.randn((1, 2, 2, 3), generator=torch.Generator().manual_seed(0)).expand(2, -1, -1, -1)
    mean, sigma = draw_init(net.spec, torch.Generator().manual_seed(0)), 0.3 * init_scale(net.spec)
    felt = {}
    for uses in ("auto", "tied"):
        outputs, _ = feel(net, mean, sigma, inputs, Draws(40_000, 2, uses, generator(0, uses)))
        felt[uses] = outputs.flatten(2).transpose(0, 1)
    own = {uses: each[0].T.cov() for uses, each in felt.items()}
    near = 0.03 * own["tied"].diagonal().max().item()
    assert torch.allclose(own["auto"], own["tied"], atol=near)
    assert torch.cat(list(felt["auto"]), 1).T.cov()[:4, 4:].abs().max() < near


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3), nn.MaxPool2d(2, stride=1), nn.MaxPool2d(2, ceil_mode=True)])
def test_pooling_without_noise_is_torchs(pool):
    """Sides that windows do not fill, NaN, and poolings that strided maxima do not serve."""
    images = torch.randn(3, 2, 7, 8, generator=torch.Generator().manual_seed(0))
    images[1, 1, 2, 3] = torch.nan
    assert torch.equal(plain(pool, images).nan_to_num(9.0), pool(images).nan_to_num(9.0))
    assert _pools_whole(pool) == (pool.stride == pool.kernel_size and not pool.ceil_mode)


@pytest.mark.parametrize("times", [2, 4])
def test_inputs_folded_into_the_batch_are_refused(times):
    """Rows of times and examples could pass for draws and examples."""

    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.out = nn.Linear(4, 5), nn.Linear(5 * times, CLASSES)

        def forward(self, x):
            return self.out(torch.tanh(self.one(x.flatten(0, 1))).view(-1, 5 * times))

    net = Network(Folded(), torch.zeros(2, times, 4))
    flat = draw_init(net.spec, generator(0, "folded"))
    with pytest.raises(InputError, match="fold nothing into the batch"):
        feel(net, flat, 0.1 * torch.ones_like(flat), torch.randn(6, times, 4), Draws(4, 6, "auto", generator(0, "felt")))
