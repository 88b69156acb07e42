"""Imagined examples: the move is the orthogonalised slope of the net's own loss on them, at any width and depth."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import make_policy
from synthnet.engine.objective import cross_entropy
from synthnet.errors import InputError
from synthnet.lab.fork import run_command
from synthnet.nets.weights import read_metadata
from synthnet.policy.file import read_policy
from synthnet.policy.imagined import GAIN, Imagined, orthogonalised, unit
from synthnet.policy.policy import ActionConfig, Policy, PolicyConfig
from synthnet.policy.rollout import rollout
from synthnet.tasks import build_task

BACKBONE = {"name": "set_transformer", "dim": 16, "heads": 2, "edge_dim": 8, "condition": 8, "depth": 1}


def imagining(*tasks, count=20, tokens=None, k_max=3, backbone=BACKBONE) -> Policy:
    config = PolicyConfig(tokens or {"name": "unit", "depth": "untold"}, backbone, k_max=k_max, imagined=count)
    return Policy.create(config, [task.arch for task in tasks], 0)


def move(policy, weights, left, net):
    """What the imagined examples alone do: a fresh trunk's heads are zero."""
    return policy(weights, left, net).mean - weights


def test_orthogonalised_matrices_have_singular_values_near_one_and_turn_with_their_units():
    draw = torch.Generator().manual_seed(0)
    for shape in ((2, 12, 30), (2, 30, 12)):
        matrices = torch.randn(shape, generator=draw) * 1e-3
        made = orthogonalised(matrices)
        values = torch.linalg.svdvals(made)
        assert values.min() > 0.6 and values.max() < 1.3
        turned = torch.linalg.qr(torch.randn(2, shape[1], shape[1], generator=draw))[0]
        assert torch.allclose(orthogonalised(turned @ matrices), turned @ made, atol=1e-4)
        assert (made * matrices).sum() > 0, "it still points along the slope"


def test_every_tensor_moves_by_the_same_root_mean_square_and_a_flat_one_stays():
    draw = torch.Generator().manual_seed(0)
    for shape in ((3, 7), (3, 5, 8), (3, 4, 2, 3, 3)):
        made = unit(1e-4 * torch.randn(shape, generator=draw))
        assert torch.allclose(made.flatten(1).square().mean(1), torch.ones(3), rtol=1e-2)
    flat = torch.zeros(2, 4, 5, requires_grad=True)
    unit(flat).sum().backward()
    assert not unit(flat).any() and flat.grad.isfinite().all()


def test_the_move_goes_down_the_nets_own_loss_on_what_is_imagined(tiny):
    """Breaks when the sign of the move, the examples of that step or the labels are others than those of the loss."""
    policy, net = imagining(tiny), tiny.network
    start = tiny.draw_start("val", range(4)) / policy.scale(net)

    def loss(scaled, left):
        images, labels = GAIN * policy.imagined.images[left - 1], (GAIN * policy.imagined.labels[left - 1]).softmax(-1)
        return cross_entropy(net.logits(scaled * policy.scale(net), images), labels.expand(4, -1, -1))

    with torch.no_grad():
        for left in (1, 3):
            change = move(policy, start, left, net)
            assert (loss(start + 0.5 * change, left) < loss(start, left) - 0.01).all()
            told = policy.imagined(start, policy.scale(net), torch.full((4,), left), net, policy.layout(net))
            assert torch.allclose(change, told, atol=1e-6), "the examples alone move a fresh policy"


def test_each_number_of_steps_left_has_examples_and_rates_of_its_own(tiny):
    policy, net = imagining(tiny), tiny.network
    start = tiny.draw_start("val", [0, 1]) / policy.scale(net)
    left = torch.tensor([3, 1])
    with torch.no_grad():
        before, together = [move(policy, start, k, net) for k in (1, 2, 3)], move(policy, start, left, net)
        assert torch.allclose(together[0], before[2][0], atol=1e-6) and torch.allclose(together[1], before[0][1], atol=1e-6)
        policy.imagined.images[1] += 1.0
        after = [move(policy, start, k, net) for k in (1, 2, 3)]
        assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1]) and torch.equal(before[2], after[2])
        policy.imagined.rate[0, 2] += 2.0**0.5 / GAIN
        assert torch.allclose(move(policy, start, 3, net), torch.tensor(2.0**0.5).exp() * before[2], atol=1e-5)
        policy.imagined.keep[0, 0] -= 1.0 / GAIN
        shrunk = move(policy, start, 1, net) - before[0]
        assert torch.allclose(shrunk, (torch.tensor(-1.0).exp() - 1) * start, atol=1e-5)


@pytest.mark.parametrize(
    "task", [("digits-mlp", {"hidden": [8]}), ("digits-mlp", {"hidden": [7, 5]}), ("mnist5k-cnn", {"channels": [3, 5]})]
)
@pytest.mark.parametrize("classes", [False, True])
def test_the_move_is_equivariant_to_hidden_permutations(task, classes):
    task = build_task(task[0], **task[1])
    policy, net = imagining(task, tokens={"name": "unit", "classes": classes}), task.network
    start = task.draw_start("val", [0, 1]) / policy.scale(net)
    permutations = net.symmetry.random(torch.Generator().manual_seed(3))
    with torch.no_grad():
        moved = net.symmetry.permute(move(policy, start, 2, net), permutations)
        again = move(policy, net.symmetry.permute(start, permutations), 2, net)
    assert torch.allclose(again, moved, atol=1e-4)
    assert (moved - move(policy, start, 2, net)).abs().max() > 1e-2, "the permutation moves nothing: no evidence"


def test_gradients_reach_the_examples_of_every_step_and_change_nothing(tiny):
    policy, net = imagining(tiny), tiny.network
    start = tiny.draw_start("val", [0, 1])
    with torch.no_grad():
        expected = rollout(policy, start, 2, net)[-1]
    final = rollout(policy, start, 2, net)[-1]
    assert torch.equal(final, expected)
    final.square().sum().backward()
    for part in (policy.imagined.images, policy.imagined.labels):
        sizes = part.grad.abs().sum((1, 2))
        assert (sizes[:2] > 0).all() and not sizes[2], "three steps are never left in a chain of two"


def test_many_nets_at_a_time_come_out_as_few_do(tiny, monkeypatch):
    policy, net = imagining(tiny), tiny.network
    start = tiny.draw_start("val", range(5)) / policy.scale(net)
    with torch.no_grad():
        whole = move(policy, start, 2, net)
        monkeypatch.setattr("synthnet.policy.imagined.CHUNK_BYTES", 1)
        assert torch.allclose(move(policy, start, 2, net), whole, atol=1e-5)


def test_a_policy_that_imagines_serves_a_depth_that_it_never_saw(tmp_path):
    """One and two layers know every kind of weight that three have; the file says how to build it all again."""
    one, two, three = (build_task("digits-mlp", hidden=[8] * depth) for depth in (1, 2, 3))
    policy = imagining(one, two)
    policy.record = {"best_k": 2}
    policy.save(tmp_path / "policy.safetensors")
    again, start = read_policy(tmp_path / "policy.safetensors"), three.draw_start("val", [0])
    with torch.no_grad():
        states = [rollout(each, start, 3, three.network)[-1] for each in (policy, again)]
    assert torch.equal(*states) and (states[0] - start).abs().max() > 0.01


def test_a_policy_for_nets_of_other_inputs_or_of_a_negative_number_is_refused(tiny):
    with pytest.raises(InputError, match="must not be negative, got -1"):
        imagining(tiny, count=-1)
    with pytest.raises(InputError, match=r"need action\.head=delta"):
        Policy.create(PolicyConfig(backbone=BACKBONE, action=ActionConfig("x0"), imagined=2), [tiny.arch], 0)
    with pytest.raises(InputError, match="backbone none learns nothing without imagined examples"):
        make_policy(tiny, {"name": "none"})
    with pytest.raises(InputError, match=r"same inputs and classes, got \[\(64, 10\), \(784, 10\)\]"):
        imagining(tiny, build_task("mnist5k-mlp"))
    plain = make_policy(tiny)
    assert plain.imagined is None and not any(name.startswith("imagined") for name in plain.state_dict())


def test_without_a_trunk_the_examples_are_all_there_is(tiny):
    policy, with_trunk, net = imagining(tiny, backbone={"name": "none"}), imagining(tiny), tiny.network
    assert {name.partition(".")[0] for name, _ in policy.named_parameters()} == {"imagined"}
    policy.imagined.load_state_dict(with_trunk.imagined.state_dict())
    start = tiny.draw_start("val", [0]) / policy.scale(net)
    with torch.no_grad():
        assert torch.allclose(move(policy, start, 2, net), move(with_trunk, start, 2, net), atol=1e-6)
    with pytest.raises(InputError, match="needs a trunk over tokens=unit"):
        policy.with_critic(4, 0)


def test_a_file_cannot_ask_for_more_than_memory_holds(tiny, tmp_path):
    policy = imagining(tiny)
    policy.record, path = {"best_k": 1}, tmp_path / "policy.safetensors"
    policy.save(path)
    said = json.loads(read_metadata(path)["synthnet.policy"])
    for count, message in ((1 << 20, "asks for imagined examples of more than"), (-3, "a size outside"), ("20", "malformed")):
        said["config"]["imagined"] = count
        save_file(load_file(path), tmp_path / "large.safetensors", {"synthnet.policy": json.dumps(said)})
        with pytest.raises(InputError, match=message):
            read_policy(tmp_path / "large.safetensors")


@pytest.mark.filterwarnings("ignore:outputs of different seeds")
def test_distil_teaches_a_new_policy_its_examples(zoo_dir, tmp_path):
    """From nothing, without pairs or standardised logits: nets of unseen seeds get better than chance within a few updates."""
    small = [
        "task.hidden=[8]",
        "threads=1",
        "lab.tensorboard=false",
        f"zoo_dir={zoo_dir}",
        "backbone.dim=16",
        "backbone.depth=1",
        "backbone.heads=2",
    ]
    distil = ["distil.steps=[2]", "distil.nets=4", "distil.images=64", "distil.labels=hard", "distil.optim.learning_rate=1e-2"]
    length = [
        "distil.loop.updates=60",
        "distil.loop.validate_every=60",
        "distil.val_seeds=4",
        "distil.optim.warmup=2",
        "distil.optim.ema=0.9",
    ]
    made = run_command("distil", [*small, *distil, *length, "imagined=40", f"run_dir={tmp_path / 'run'}"])
    policy = read_policy(made)
    after = policy.record["stages"][-1]["after"]["accuracy_k2"]
    before = policy.record["stages"][-1]["before"]["accuracy_k2"]
    assert after > before + 0.2, (before, after)
    fresh = Imagined(40, policy.config.k_max, len(policy.vocabulary), build_task("digits-mlp").network)
    assert not torch.equal(policy.imagined.labels, fresh.labels), "labels are learned too"
