import torch
from torch.distributions import Normal, kl_divergence

from conftest import make_policy
from synthnet.policy.action import Alike, WeightGaussian


def _pair():
    torch.manual_seed(0)
    places = Alike(torch.arange(6), torch.tensor([0, 0, 1, 2, 2, 2]), 3)
    first = WeightGaussian(torch.randn(4, 6), torch.randn(6) * 0.3, places)
    return first, WeightGaussian(torch.randn(4, 6), torch.randn(6) * 0.3, places)


def test_log_prob_and_kl_are_torchs():
    first, second = _pair()
    value = torch.randn(4, 6)
    normal, other = Normal(first.mean, first.log_sigma.exp()), Normal(second.mean, second.log_sigma.exp())
    assert torch.allclose(first.log_prob(value), normal.log_prob(value).sum(-1), atol=1e-5)
    assert torch.allclose(first.kl(second), kl_divergence(normal, other).sum(-1), atol=1e-5)


def test_deviations_are_those_of_the_policy_as_it_was(tiny):
    """A Gaussian that is looked into later, as the policy at the start of a run is, does not follow what was learned since."""
    policy = make_policy(tiny)
    action = policy(tiny.draw_start("val", [0]), 1, tiny.network)
    before = policy.log_sigma.detach().clone()
    policy.log_sigma.data += 0.5
    assert torch.equal(action.log_sigma, before[policy.layout(tiny.network).column_of])


def test_token_sums_add_up_and_go_to_their_tokens():
    first, _ = _pair()
    value = torch.randn(4, 6)
    per_weight = Normal(first.mean, first.log_sigma.exp()).log_prob(value)
    tokens = first.log_prob_tokens(value)
    assert torch.allclose(tokens[:, 0], per_weight[:, :2].sum(-1), atol=1e-5)
    assert torch.allclose(tokens[:, 2], per_weight[:, 3:].sum(-1), atol=1e-5)


def test_kl_to_itself_is_zero_with_zero_gradient():
    first, _ = _pair()
    mean = first.mean.clone().requires_grad_()
    kl = WeightGaussian(mean, first.log_sigmas, first.places).kl(first).sum()
    kl.backward()
    assert kl.item() == 0
    assert not mean.grad.any()


def test_sampling_is_mean_plus_sigma_noise_and_mirrors_cancel():
    first, _ = _pair()
    noise = torch.randn(4, 6)
    assert torch.allclose((first.sample(noise) + first.sample(-noise)) / 2, first.mean, atol=1e-6)
    assert torch.equal(first.sample(torch.zeros(4, 6)), first.mean)


def test_density_counts_every_weight_once_and_no_padding(deep):
    """Unit tokens are padded; a density over padding would show as a wrong constant."""
    policy = make_policy(deep, sigma=0.3)
    weights = deep.draw_start("val", [0])
    action = policy(weights, 1, deep.network)
    expected = Normal(action.mean, 0.3).log_prob(action.mean).sum(-1)
    assert torch.allclose(action.log_prob(action.mean), expected, rtol=1e-5)
