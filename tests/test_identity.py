"""The identity measures on generators whose verdict is known."""

import pytest
import torch

from synthnet.nets.identity import (
    aligned_distance,
    disagreement,
    ensemble_gain,
    identity_report,
    own_twin_rank,
    prediction_shortfall,
    right,
    shortfall,
)


@pytest.fixture(scope="module")
def nets(tiny):
    return tiny.draw_start("val", list(range(24))) * 2


def _symmetry(task):
    return task.network.symmetry


def test_permuted_and_rescaled_copies_of_one_net_are_seen_as_one(tiny, nets):
    symmetry, copies = _symmetry(tiny), []
    torch.manual_seed(0)
    for index in range(12):
        copy = tiny.network.spec.unflatten(symmetry.permute(nets[0], {"hidden1": torch.randperm(8)}).clone())
        copy = {**copy, "fc1.weight": copy["fc1.weight"] * (index + 1), "fc1.bias": copy["fc1.bias"] * (index + 1)}
        copies.append(tiny.network.spec.flatten({**copy, "fc2.weight": copy["fc2.weight"] / (index + 1)}))
    collapsed = torch.stack(copies)
    raw = torch.pdist(collapsed).mean()
    assert raw > 1, "raw distance is fooled"
    assert aligned_distance(symmetry, collapsed) < 1e-2
    assert aligned_distance(symmetry, nets) > 0.5


def test_distance_is_blind_to_the_overall_scale(tiny, nets):
    symmetry = _symmetry(tiny)
    assert aligned_distance(symmetry, 5 * nets) == pytest.approx(aligned_distance(symmetry, nets), rel=1e-6)


def test_disagreement_counts_pairs_of_different_nets():
    one_hot = torch.eye(3)[torch.tensor([[0, 0], [0, 1], [0, 2]])]
    assert disagreement(one_hot) == pytest.approx(0.5)
    assert disagreement(one_hot[:1].repeat(4, 1, 1)) == 0


def test_ensembles_of_copies_gain_nothing_and_independent_errors_average_out():
    labels = torch.arange(10).repeat(20)
    torch.manual_seed(0)
    truth = torch.eye(10)[labels]
    noisy = truth + 1.5 * torch.rand(16, 200, 10)
    assert ensemble_gain(noisy[:1].repeat(16, 1, 1), right(labels)) == 0
    assert ensemble_gain(noisy, right(labels)) > 0.05


def test_own_twin_is_first_for_small_displacements_and_chance_for_foreign_ones():
    torch.manual_seed(0)
    start, moved = torch.randn(64, 200), torch.randn(64, 200)
    twins = start + moved
    near = own_twin_rank(start, start + 0.3 * moved + 0.1 * torch.randn(64, 200), twins)
    foreign = own_twin_rank(start, start + torch.randn(64, 200), twins)
    assert near["own_twin_first"] == 1
    assert near["cosine_own"] > 0.8
    assert foreign["own_twin_first"] < 0.2
    assert own_twin_rank(start, start, twins)["cosine_own"] == 0, "start weights have no displacement and prove nothing"


def test_references_score_one_against_themselves_and_bad_nets_do_not_count(tiny, nets):
    torch.manual_seed(0)
    labels = torch.randint(10, (50,))
    probs = (torch.eye(10)[labels] + torch.rand(24, 50, 10)).softmax(-1)
    report = identity_report(_symmetry(tiny), nets, nets, probs, probs, right(labels))
    assert report["aligned_distance"]["ratio"] == 1
    assert report["functional_counts"]
    worse = torch.rand(24, 50, 10).softmax(-1)
    assert not identity_report(_symmetry(tiny), nets, nets, worse, probs, right(labels))["functional_counts"]


def test_shortfall_is_zero_for_nets_that_lie_apart_and_its_gradient_parts_copies(tiny, nets):
    symmetry = _symmetry(tiny)
    apart = aligned_distance(symmetry, nets)
    assert shortfall(symmetry, nets, 0.5 * apart) == 0
    draw = torch.Generator().manual_seed(0)
    copies = torch.stack([symmetry.permute(nets[0], symmetry.random(draw)) for _ in range(4)])
    copies = (copies + 0.01 * torch.randn(copies.shape, generator=draw)).requires_grad_()
    before = shortfall(symmetry, copies, apart)
    assert before > 0.8, "permuted copies are copies"
    before.backward()
    moved = copies.detach() - 0.5 * copies.grad / copies.grad.norm()
    assert aligned_distance(symmetry, moved) > aligned_distance(symmetry, copies.detach())


def test_prediction_shortfall_knows_its_answer_and_its_gradient_parts_predictions():
    """Neighbours whose class probabilities differ by 0.1 and 0.4; references that differ by 0.2 on average."""
    pairs = [[[0.5, 0.5]], [[0.6, 0.4]], [[0.9, 0.1]], [[0.5, 0.5]]]
    references = torch.tensor([[[0.5, 0.5]], [[0.7, 0.3]]])
    probabilities = torch.tensor(pairs, requires_grad=True)
    lack = prediction_shortfall(probabilities, references, 1.0)
    assert lack.item() == pytest.approx((1 - 0.1 / 0.2) ** 2 / 2), (
        "the second pair differs by more than is wanted: no reward for it"
    )
    assert prediction_shortfall(probabilities, references, 0.5) == 0
    lack.backward()
    assert probabilities.grad[0, 0, 0] > 0 > probabilities.grad[1, 0, 0], "descent moves the first pair apart"
    assert not probabilities.grad[2:].any()
