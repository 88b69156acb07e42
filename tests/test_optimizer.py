"""The optimiser of policies: AdamW as torch has it, Muon for matrices, slots that survive a checkpoint."""

import pytest
import torch
from torch import nn

from synthnet.errors import InputError
from synthnet.policy import orthogonalised
from synthnet.policy.moe import MixtureOfExperts
from synthnet.train.optimizer import Optimizer


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.LayerNorm(24), nn.Linear(24, 3))


def _run(optimizer, net, steps=3, seed=1):
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.set(1e-2, 0.1)
        optimizer.zero_grad()
        net(torch.randn(16, 12, generator=draw)).square().sum().backward()
        optimizer.step()
    return [value.clone() for value in net.state_dict().values()]


def test_the_default_is_torchs_adamw_bit_for_bit(net):
    state = {name: value.clone() for name, value in net.state_dict().items()}
    ours = _run(Optimizer(net), net)
    net.load_state_dict(state)
    theirs = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
    draw = torch.Generator().manual_seed(1)
    for _ in range(3):
        theirs.zero_grad()
        net(torch.randn(16, 12, generator=draw)).square().sum().backward()
        theirs.step()
    assert all(map(torch.equal, ours, net.state_dict().values()))


MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon before 2.9")


@MUON
def test_muon_turns_every_direction_of_a_matrix_alike(net):
    """Singular values of its step lie near one another, and its root mean square is that of AdamW's steps: 0.2 of the rate.
    Vectors, and matrices with a side below 8, are AdamW's, whose first step moves every weight by the rate."""
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = Optimizer(net, "muon")
    optimizer.set(1e-2, 0.0)
    (net(torch.randn(64, 12)) ** 3).sum().backward()
    optimizer.step()
    moves = {name: value - before[name] for name, value in net.state_dict().items()}
    stretch = torch.linalg.svdvals(moves["0.weight"])
    assert stretch.min() > 0.4 * stretch.max(), "a gradient's own singular values lie a factor of 10 and more apart"
    assert moves["0.weight"].square().mean().sqrt().item() == pytest.approx(0.2e-2, rel=0.3)
    for name in ("0.bias", "1.weight", "2.weight"):
        assert torch.allclose(moves[name].abs(), torch.full_like(moves[name], 1e-2), rtol=1e-3), name


@MUON
def test_rows_of_a_table_that_no_gradient_reached_stay_where_they_are():
    """Orthogonalised momentum would move them as far as those that one did."""
    table = nn.Embedding(16, 12)
    before, optimizer = table.weight.detach().clone(), Optimizer(table, "muon")
    optimizer.set(1e-2, 0.0)
    table(torch.tensor([3])).sum().backward()
    optimizer.step()
    moved = (table.weight.detach() - before).abs().sum(1) > 0
    assert moved.nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("rule", ["adamw", pytest.param("muon", marks=MUON)])
def test_a_learning_rate_of_zero_moves_nothing(net, rule):
    before, optimizer = [value.clone() for value in net.parameters()], Optimizer(net, rule)
    optimizer.set(0.0, 0.0)
    net(torch.randn(4, 12)).sum().backward()
    optimizer.step()
    assert all(map(torch.equal, before, net.parameters()))


@pytest.mark.parametrize("rule", ["adamw", pytest.param("muon", marks=MUON)])
def test_slots_go_on_where_they_were_and_are_forgotten_when_asked(net, rule):
    optimizer = Optimizer(net, rule)
    _run(optimizer, net)
    assert len(optimizer.slots) == len(list(net.parameters()))
    kept, state = optimizer.slots, {name: value.clone() for name, value in net.state_dict().items()}
    kept = {number: {slot: torch.as_tensor(value).clone() for slot, value in slots.items()} for number, slots in kept.items()}
    went_on = _run(optimizer, net, seed=2)
    net.load_state_dict(state)
    again = Optimizer(net, rule)
    again.slots = kept
    assert all(map(torch.equal, went_on, _run(again, net, seed=2)))
    again.forget()
    assert again.slots == {}


def test_rules_that_are_not_there_are_refused(net, monkeypatch):
    with pytest.raises(InputError, match="one of adamw, muon, got 'sgd'"):
        Optimizer(net, "sgd")
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(InputError, match=r"needs torch 2\.9 or newer"):
        Optimizer(net, "muon")


@MUON
def test_each_expert_of_a_stack_is_a_matrix_of_its_own(tmp_path):
    """An expert that no token reached stays; the others' steps have singular values near one another; slots survive."""
    torch.manual_seed(0)
    mixture = MixtureOfExperts(16, 32, experts=3)
    with torch.no_grad():
        mixture.gate.weight.zero_()
        mixture.gate.weight[2, 0] = -50.0  # inputs have a first number of 1: the third expert gets nothing
    before, optimizer = mixture.up.detach().clone(), Optimizer(mixture, "muon")
    optimizer.set(1e-2, 0.0)
    x = torch.randn(1, 60, 16)
    x[..., 0] = 1.0
    x[:, ::2, 1] = 3.0
    with torch.no_grad():
        mixture.gate.weight[0, 1] = 1.0
    (mixture(x) ** 3).sum().backward()
    optimizer.step()
    moved = mixture.up.detach() - before
    assert not moved[2].any()
    for number in (0, 1):
        stretch = torch.linalg.svdvals(moved[number])
        assert stretch.median() > 0.5 * stretch.max()
    again = Optimizer(mixture, "muon")
    again.slots = optimizer.slots
    assert len(again.slots) == len(optimizer.slots) > 4


@MUON
def test_matrices_of_one_shape_are_turned_together_as_torch_turns_each(net):
    """Tall and wide ones of one shape, weight decay and momentum over several steps; to the rounding of torch's bfloat16."""
    from synthnet.train.muon import Muon

    ours = [nn.Parameter(torch.randn(shape)) for shape in ((12, 24), (24, 12), (12, 24), (16, 16))]
    theirs = [nn.Parameter(one.detach().clone()) for one in ours]
    mine, torchs = Muon(ours), torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw")
    before = [one.detach().clone() for one in ours]
    for step in range(4):
        for optimizer, matrices in ((mine, ours), (torchs, theirs)):
            optimizer.param_groups[0].update(lr=1e-2, weight_decay=0.1)
            draw = torch.Generator().manual_seed(step)
            for one in matrices:
                one.grad = torch.randn(one.shape, generator=draw)
            optimizer.step()
    for one, other, then in zip(ours, theirs, before, strict=True):
        assert (one - other).norm() < 0.02 * (one - then).norm()
    assert mine.state_dict()["state"][0].keys() == torchs.state_dict()["state"][0].keys()


@MUON
def test_muon_turns_in_float32():
    """bfloat16, whose steps are a percent off, is emulated on many processors."""
    from synthnet.train.muon import Muon

    one = nn.Parameter(torch.zeros(12, 24))
    one.grad = torch.randn(12, 24, generator=torch.Generator().manual_seed(0))
    optimizer = Muon([one])
    optimizer.param_groups[0].update(lr=1e-2, weight_decay=0.0)
    optimizer.step()
    assert torch.allclose(one, -1e-2 * 0.2 * 24**0.5 * orthogonalised(one.grad[None])[0], atol=1e-7)
