"""Mixture of experts: routing by the token alone, gradients to the gate, known values of the balance loss, equivariance."""

import math

import pytest
import torch
import torch.nn.functional as F

from conftest import make_policy
from synthnet.errors import InputError
from synthnet.policy import mixtures, synthesize_flat, with_experts
from synthnet.policy.experts import choices, information, loads, role_metrics, roles
from synthnet.policy.moe import MixtureOfExperts
from synthnet.seeds import generator
from synthnet.train.pairs import PairsConfig, draw_pairs, pairs_loss


def mixture(**settings) -> MixtureOfExperts:
    torch.manual_seed(0)
    made = MixtureOfExperts(8, 12, 4, **settings).double()
    torch.nn.init.normal_(made.gate.weight)
    return made


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_output_is_the_chosen_experts_times_their_probability(top_k):
    moe, x = mixture(top_k=top_k), torch.randn(3, 5, 8, dtype=torch.float64)
    probabilities = moe.gate(x).softmax(-1)
    every = torch.stack([F.gelu(x @ moe.up[e] + moe.up_bias[e]) @ moe.down[e] + moe.down_bias[e] for e in range(4)], -2)
    kept = probabilities * (probabilities >= probabilities.topk(top_k).values[..., -1:])
    assert torch.allclose(moe(x), (kept[..., None] * every).sum(-2), atol=1e-6)


def test_a_token_is_routed_by_itself_alone():
    """Capacity limits or expert choice would break this: then a token's output depends on its neighbours."""
    moe, x = mixture(), torch.randn(1, 20, 8, dtype=torch.float64)
    crowded = torch.cat([x, x[:, :1].expand(1, 50, 8)], 1)
    assert torch.allclose(moe(crowded)[:, :20], moe(x), atol=1e-12)


def test_the_gate_has_a_gradient_and_renormalising_would_take_it_away():
    moe, x = mixture(), torch.randn(30, 8, dtype=torch.float64)
    moe(x).sum().backward()
    assert moe.gate.weight.grad.abs().max() > 1e-2
    chosen = moe.gate(x).softmax(-1).max(-1).values
    (gone,) = torch.autograd.grad((chosen / chosen).sum(), moe.gate.weight)
    assert gone.abs().max() < 1e-9


def test_the_balance_loss_is_one_when_balanced_and_the_number_of_experts_when_collapsed(monkeypatch):
    monkeypatch.setattr("synthnet.policy.moe.Z_LOSS", 0.0)
    moe = mixture(balance=1.0, temperature=1e-3)
    with torch.no_grad():
        moe.gate.weight.copy_(10 * torch.eye(8)[:4])
    moe(torch.eye(8, dtype=torch.float64)[:4].repeat(5, 1))
    assert moe.auxiliary_loss().item() == pytest.approx(1.0, abs=1e-6)
    moe(torch.eye(8, dtype=torch.float64)[:1].repeat(5, 1))
    assert moe.auxiliary_loss().item() == pytest.approx(4.0, abs=1e-6)
    assert moe.load.tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("name", ["set_transformer", "perceiver_io"])
def test_a_mixture_in_a_trunk_is_equivariant_and_its_losses_reach_the_stage(name, deep):
    """In float64, where no gate is so near a tie (margin 1e-6) that rounding decides; nothing had to be left out here."""
    backbone = {"name": name, "dim": 16, "heads": 2, "edge_dim": 8, "condition": 8, "experts": 3}
    policy, net = make_policy(deep, backbone).double(), deep.network
    weights = deep.draw_start("val", [0, 1]).double() / 0.1
    permutations = net.symmetry.random(torch.Generator().manual_seed(3))
    margins = []
    for module in policy.trunk.modules():
        if isinstance(module, MixtureOfExperts):
            module.gate.register_forward_hook(lambda _, __, out: margins.append(out.topk(2).values.diff().abs().min()))
    moved = net.symmetry.permute(policy(weights, 2, net).mean, permutations)
    assert torch.allclose(policy(net.symmetry.permute(weights, permutations), 2, net).mean, moved, atol=1e-5)
    assert min(margins) > 1e-6
    loss, metrics = policy.auxiliary_loss()
    assert loss > 0 and 1 / 3 <= metrics["moe/load_max"] <= 1
    assert policy.auxiliary_loss() == (0.0, {})


def test_a_policy_with_experts_learns_pairs(tiny):
    policy = make_policy(tiny, {"name": "perceiver_io", "dim": 16, "heads": 2, "latents": 4, "condition": 8, "experts": 2})
    start = tiny.draw_start("zoo", list(range(8)))
    states = torch.stack([start, 0.5 * start], 1)
    config = PairsConfig(batch=8, single=1.0, short=0.0, long=0.0, skipped=0.0)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    losses = []
    for update in range(60):
        batch = draw_pairs(config, states, policy.config.k_max, generator(0, "test", update))
        loss = pairs_loss(policy, batch, tiny.network)
        losses.append(loss.item())
        optimizer.zero_grad()
        (loss + policy.auxiliary_loss()[0]).backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    assert policy.trunk.rounds[0].read.ffn.gate.weight.grad.any()


def test_information_and_loads_by_value():
    """An expert for each role tells all of it; experts drawn without regard to roles tell nothing; two roles that share an
    expert of three tell what is left: I = log 3 − (2/3) log 2."""
    role = torch.arange(3).repeat(4000)
    assert information(role, role) == pytest.approx(1)
    assert information(torch.arange(12000) // 4000, role) == pytest.approx(0, abs=1e-6)
    shared = information(torch.tensor([0, 0, 1])[role], role)
    assert shared == pytest.approx((math.log(3) - 2 / 3 * math.log(2)) / math.log(3))
    assert loads(torch.tensor([0, 0, 1, 1, 1, 1]), torch.tensor([0, 0, 0, 1, 1, 1])) == {
        0: pytest.approx([2 / 3, 1 / 3]), 1: [0, 1]
    }  # fmt: skip


def test_what_experts_make_of_roles_is_measured_on_unit_tokens_alone(deep):
    """Two hidden layers and the outputs are three roles; a gate that looks at nothing sends all to one expert."""
    backbone = {"name": "perceiver_io", "dim": 16, "heads": 2, "edge_dim": 8, "latents": 30, "condition": 8, "experts": 3}
    policy, start = make_policy(deep, backbone), deep.draw_start("val", [0, 1])
    assert roles(policy.layout(deep.network)).bincount().tolist() == [7, 5, 1]
    found = choices(policy, deep.network, start)
    assert set(found) == {"rounds.0.ask.ffn", "rounds.1.ask.ffn"}, "latents are no tokens"
    assert all(len(expert) == len(role) == 2 * 2 * 13 for expert, role in found.values())
    metrics = role_metrics(policy, [deep.network], [start], [None])
    assert set(metrics) == {"moe/information", "moe/load/role0", "moe/load/role1", "moe/load/role2"}
    for module in policy.trunk.modules():
        if isinstance(module, MixtureOfExperts):
            torch.nn.init.zeros_(module.gate.weight)
    assert role_metrics(policy, [deep.network], [start], [None]) == {
        "moe/information": pytest.approx(0, abs=1e-6), **{f"moe/load/role{i}": 1.0 for i in range(3)}
    }  # fmt: skip
    assert role_metrics(make_policy(deep), [deep.network], [start], [None]) == {}


@pytest.mark.parametrize("settings", [{"experts": 1}, {"experts": 2, "top_k": 3}, {"experts": 2, "temperature": 0.0}])
def test_impossible_mixtures_are_refused(settings):
    with pytest.raises(InputError, match="at least 2 experts"):
        MixtureOfExperts(8, 8, **settings)


def test_over_time_experts_may_share_nets_instead_of_tokens():
    """All tokens of a pass on one expert cost the most within a pass; over time nothing, where other nets use the others."""
    torch.manual_seed(0)
    x, losses = torch.randn(1, 40, 8), {}
    for over_time in (False, True):
        mixture = MixtureOfExperts(8, 16, experts=2, balance=1.0, over_time=over_time)
        with torch.no_grad():
            mixture.gate.weight.copy_(torch.tensor([[5.0] + [0.0] * 7, [-5.0] + [0.0] * 7]))
        one, other = x.clone(), x.clone()
        one[..., 0], other[..., 0] = 3.0, -3.0
        for step in range(400):
            mixture(one if step % 2 else other)
            losses[over_time] = mixture.auxiliary_loss().item()
        assert mixture.load.max() == 1
    z_loss = 1e-3 * 15**2
    assert losses[False] == pytest.approx(2 + z_loss, abs=0.01)
    assert losses[True] == pytest.approx(1 + z_loss, abs=0.05)


TRUNK = {"name": "set_transformer", "dim": 16, "heads": 2, "edge_dim": 8, "condition": 8}


def test_each_expert_becomes_several_and_what_a_policy_makes_stays(tiny, monkeypatch):
    """Experts 0 and 1 of four are copies of the first; where their gates are equal nothing changes, by a little they part."""
    policy = make_policy(tiny, {**TRUNK, "experts": 2, "balance_by": "time"})
    with torch.no_grad():
        for part in mixtures(policy):
            part.down_bias.normal_(generator=generator(0, "bias"))
    start = tiny.draw_start("val", [0, 1])
    before = synthesize_flat(policy, start, 2, tiny.network)[:, -1]
    near = synthesize_flat(with_experts(policy, 4, 0), start, 2, tiny.network)[:, -1]
    monkeypatch.setattr("synthnet.policy.growth.PARTING", 0.0)
    wide = with_experts(policy, 4, 0)
    assert torch.allclose(synthesize_flat(wide, start, 2, tiny.network)[:, -1], before, atol=1e-5)
    assert not torch.equal(near, before) and (near - before).abs().max() < 0.1 * (before - start).abs().max()
    part, old = mixtures(wide)[0], mixtures(policy)[0]
    assert torch.equal(part.up[[0, 1]], old.up[[0, 0]]) and torch.equal(part.down[3], 2 * old.down[1])
    assert part.usage.sum().item() == pytest.approx(1)
    assert with_experts(policy, 2, 0) is policy


@pytest.mark.parametrize(
    ("there", "asked"), [({"experts": 2}, 3), ({"experts": 2}, 0), ({}, 4), ({"experts": 2, "top_k": 2}, 4)]
)
def test_experts_become_no_other_number(tiny, there, asked):
    with pytest.raises(InputError, match=rf"backbone.experts is {asked} here.*ask for a multiple"):
        with_experts(make_policy(tiny, {**TRUNK, **there}), asked, 0)
