"""Reward terms by value: known sequences, floors for ruined nets, and that none can be farmed."""

import math

import pytest
import torch

from conftest import make_policy
from synthnet.errors import InputError
from synthnet.grpo.config import GrpoConfig, check
from synthnet.grpo.objective import group_advantages
from synthnet.grpo.rewards.calibration import calibration_error
from synthnet.grpo.sample import Rollouts, draw_cohorts
from synthnet.grpo.score import RewardConfig, Scored, illness, join, measure, needs, terms, total


def scored(accuracy, loss=None, norm=None, probabilities=None, labels=None, **changes) -> Scored:
    accuracy = torch.tensor(accuracy, dtype=torch.float64)
    loss = torch.tensor(loss, dtype=torch.float64) if loss is not None else math.log(10) * (1 - accuracy)
    norm = torch.tensor(norm) if norm is not None else torch.ones_like(accuracy)
    n_rollouts, n_states = accuracy.shape
    given = {"moved": torch.zeros(n_rollouts, n_states - 1), "n_steps": torch.full((n_rollouts,), n_states - 1)}
    given |= {"group": torch.arange(n_rollouts), "ill": torch.zeros(n_rollouts)}
    given |= {"labels": labels, "probabilities": probabilities}
    return Scored(10, accuracy, loss, norm, **{**given, **changes})


def test_every_term_has_a_weight_and_every_weight_a_term():
    assert set(RewardConfig().weights) == set(terms())
    assert all(callable(term.reward) for term in terms().values())


def test_accuracy_and_bounded_loss_at_perfection_chance_and_ruin():
    case = scored([[1.0], [0.1], [0.1], [0.1], [0.1]], [[0.0], [math.log(10)], [1e9], [math.nan], [math.inf]])
    assert terms()["bounded_loss"].reward(case).tolist() == pytest.approx([1.0, 0.0, -1.0, -1.0, -1.0], abs=1e-6)
    value, means = total(case, {"accuracy": 0.5, "bounded_loss": 0.5, "gain": 0.0})
    assert value.tolist() == pytest.approx([1.0, 0.05, -0.45, -0.5, -0.5], abs=1e-6)
    assert set(means) == {"rewards/accuracy", "rewards/bounded_loss"}


def test_a_ruined_net_gets_a_negative_advantage():
    case = scored([[0.9], [0.8], [0.0]], [[0.3], [0.5], [math.nan]])
    assert group_advantages(total(case, {"accuracy": 1.0, "bounded_loss": 1.0})[0][None])[0, 2] < -1


def test_a_net_with_ruined_weights_gets_the_floor_of_every_term():
    """Also where its loss is finite, as that of a net whose infinite weight no image excites."""
    probabilities = torch.full((2, 4, 10), 0.1)
    given = {"labels": torch.arange(4), "probabilities": probabilities, "copies": torch.full((2, 1), 0.9)}
    case = scored([[0.1, 0.9], [0.1, 0.9]], norm=[[1.0, 1.0], [1.0, math.inf]], **given)
    for name, term in terms().items():
        if name != "step_cost":  # its worst is whatever K was
            healthy, ruined = total(case, {name: 1.0})[0].tolist()
            assert ruined == term.FLOOR, name
            assert healthy >= ruined, name


def test_gain_cannot_be_farmed():
    """From one start to one end: the straight way, a detour down, and past the end and back all earn the same."""
    case = scored([[0.5, 0.55, 0.6], [0.5, 0.4, 0.6], [0.5, 0.7, 0.6]])
    straight, detour, beyond = terms()["gain"].reward(case).tolist()
    assert straight == pytest.approx(0.1)
    assert detour == pytest.approx(straight)
    assert beyond == pytest.approx(straight)


def test_efficiency_likes_good_nets_early_and_stability_dislikes_setbacks_and_growth():
    early, late = terms()["efficiency"].reward(scored([[0.1, 0.8, 0.9], [0.1, 0.2, 0.9]])).tolist()
    assert (early, late) == pytest.approx((0.85, 0.55))
    case = scored([[0.1, 0.9, 0.8], [0.1, 0.8, 0.9], [0.1, 0.8, 0.9]], norm=[[1.0, 1, 1], [1.0, 1, 1], [1.0, 1, math.e]])
    assert terms()["stability"].reward(case).tolist() == pytest.approx([-0.1, 0.0, -1.0], abs=1e-6)


def test_a_sequence_of_fewer_steps_is_judged_on_its_own_steps():
    """The shorter one repeats its last state: nothing more is gained or lost, and efficiency is the mean over the steps
    taken."""
    one = scored([[0.1, 0.7]])
    two = scored([[0.1, 0.7, 0.9]], group=torch.tensor([1]))
    both = join([two, one], [torch.tensor([1]), torch.tensor([0])])
    assert both.n_steps.tolist() == [1, 2] and both.group.tolist() == [0, 1]
    assert terms()["efficiency"].reward(both).tolist() == pytest.approx([0.7, 0.8])
    assert terms()["gain"].reward(both).tolist() == pytest.approx([0.6, 0.8])
    assert terms()["accuracy"].reward(both).tolist() == pytest.approx([0.7, 0.9])
    assert terms()["step_cost"].reward(both).tolist() == [-1, -2]


def test_stability_dislikes_jumps_and_ill_nets_and_has_a_floor():
    base = [[0.5, 0.9]] * 4
    case = scored(base, moved=torch.tensor([[1.0], [3.5], [1.0], [math.inf]]), ill=torch.tensor([0.0, 0.0, 0.25, 0.0]))
    assert total(case, {"stability": 1.0})[0].tolist() == pytest.approx([0.0, -1.5, -0.25, -10.0])


def test_robustness_is_the_worst_copy_and_diversity_the_distance_to_other_seeds():
    case = scored([[0.9], [0.9]], copies=torch.tensor([[0.8, 0.6, 0.7], [0.5, 0.9, 0.9]]))
    assert terms()["robustness"].reward(case).tolist() == pytest.approx([0.6, 0.5])
    sure = torch.eye(10)[torch.tensor([[0, 1], [0, 1], [0, 2], [0, 2]])]
    groups = scored([[0.9]] * 4, probabilities=sure, group=torch.tensor([0, 0, 1, 1]))
    assert terms()["diversity"].reward(groups).tolist() == pytest.approx([0.5] * 4)  # one image of two, all of its mass
    alone = scored([[0.9]] * 4, probabilities=sure, group=torch.zeros(4, dtype=torch.long))
    assert not terms()["diversity"].reward(alone).any()


def test_dead_units_and_collapsed_layers_are_counted(tiny, deep):
    """Three of eight hidden units silenced by a huge negative bias; one of two weight matrices all but zero."""
    images = tiny.examples("val")[0]
    nets = tiny.draw_start("val", [0, 1, 2])
    scale = tiny.start_scale
    assert illness(tiny.network, nets, images, scale).tolist() == [0, 0, 0]
    tensors = tiny.network.spec.unflatten(nets)
    tensors["fc1.bias"][1, :3] = -1e3
    tensors["fc2.weight"][2] *= 1e-3
    nets = tiny.network.spec.flatten(tensors)
    assert illness(tiny.network, nets, images, scale).tolist() == pytest.approx([0, 3 / 8, 1 / 2])


def test_scores_from_probabilities_are_those_of_the_network(tiny):
    with_predictions, without = (_measured(tiny, RewardConfig(worst_class=w), False) for w in (1.0, 0.0))
    assert torch.equal(with_predictions.accuracy, without.accuracy)
    assert torch.allclose(with_predictions.loss, without.loss, atol=1e-5)


def test_the_worst_class_is_found_and_absent_classes_do_not_count():
    labels = torch.tensor([0, 0, 1, 1, 1, 1])
    predicted = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 1, 1]])
    case = scored([[0.8], [0.8]], probabilities=torch.nn.functional.one_hot(predicted, 10).float(), labels=labels)
    assert terms()["worst_class"].reward(case).tolist() == pytest.approx([0.75, 0.5])


def test_calibration_error_of_known_forecasts():
    """Always 80 % sure: right 80 % of the time is calibrated, never right is off by 0.8; over-confidence counts by its gap."""
    labels = torch.arange(1500) % 10
    sure = torch.full((1500, 10), 0.2 / 9).scatter(1, labels[:, None], 0.8)
    wrong = torch.full((1500, 10), 0.2 / 9).scatter(1, (labels[:, None] + 1) % 10, 0.8)
    mostly = torch.where((torch.arange(1500) % 5 == 0)[:, None], wrong, sure)
    errors = calibration_error(torch.stack([mostly, wrong, sure]), labels)
    assert errors.tolist() == pytest.approx([0.0, 0.8, 0.2], abs=1e-6)
    case = scored([[0.8]] * 3, [[0.1], [0.1], [math.nan]], probabilities=torch.stack([mostly, wrong, sure]), labels=labels)
    assert total(case, {"calibration": 1.0})[0].tolist() == pytest.approx([0.0, -0.8, -1.0], abs=1e-6)


def _measured(task, reward, steps, n_images=40):
    """Two start states with two rollouts each, as they are, for two steps that change nothing."""
    images, labels = (part[:n_images] for part in task.examples("val"))
    starts, config = task.draw_start("val", [0, 1]), GrpoConfig(prompts=2, num_generations=2)
    (cohort,) = draw_cohorts([(task.network, starts, None)], 2, False, config, 0, 0)
    states = [starts.repeat_interleave(2, 0)] * 3
    return measure(Rollouts(cohort, states, []), images, labels, reward, steps, torch.Generator().manual_seed(0))


def test_states_are_measured_only_where_a_term_needs_them(tiny):
    every, last = (_measured(tiny, RewardConfig(worst_class=1.0), steps) for steps in (True, False))
    assert last.accuracy.shape == (4, 1) and every.accuracy.shape == (4, 3)
    assert torch.equal(last.accuracy[:, 0], every.accuracy[:, 2])
    assert last.probabilities.shape == (4, 40, 10)
    assert last.group.tolist() == [0, 0, 1, 1] and last.n_steps.tolist() == [2] * 4
    assert needs({"gain": 0.1}, "NEEDS_STEPS") and not needs({"gain": 0.0, "accuracy": 1.0}, "NEEDS_STEPS")
    plain = _measured(tiny, RewardConfig(), False)
    assert plain.probabilities is plain.copies is plain.ill is None


def test_a_cost_per_step_that_would_cancel_is_refused(tiny):
    for config in (GrpoConfig(steps=[2]), GrpoConfig(steps=[1, 2], steps_by="group")):
        with pytest.raises(InputError, match="cancels"):
            check(config, RewardConfig(step_cost=0.1), make_policy(tiny), tiny)
    check(GrpoConfig(steps=[1, 2]), RewardConfig(step_cost=0.1), make_policy(tiny), tiny)


@pytest.mark.parametrize(
    "changes", [{"accuracy": 0.0, "bounded_loss": 0.0}, {"gain": math.nan}, {"dtype": "int8"}, {"batch": 1}]
)
def test_bad_rewards_are_refused(tiny, changes):
    with pytest.raises(InputError):
        check(GrpoConfig(), RewardConfig(**changes), make_policy(tiny), tiny)
