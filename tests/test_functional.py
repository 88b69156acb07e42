import pytest
import torch
import torch.nn.functional as F
from torch import nn

from synthnet.engine import network as functional
from synthnet.engine.network import Network
from synthnet.engine.objective import accuracy, cross_entropy
from synthnet.engine.plan import Plan
from synthnet.engine.scoring import layer_errors, score
from synthnet.errors import InputError
from synthnet.nets.arch import Arch
from synthnet.tasks import build_task


@pytest.mark.parametrize("own_inputs", [False, True])
@pytest.mark.parametrize("task_name", ["tiny", "deep"])
def test_backends_agree(task_name, own_inputs, request):
    task = request.getfixturevalue(task_name)
    weights, inputs = task.draw_start("val", [0, 1, 2]) * 3, task.examples("val")[0][:20]
    if own_inputs:
        inputs = torch.stack([inputs, inputs + 0.1, inputs * 2])
    results = {name: task.network.logits(weights, inputs, name, own_inputs) for name in ("batched", "vmap", "loop")}
    assert results["loop"].shape == (3, 20, 10)
    for name in ("batched", "vmap"):
        assert torch.allclose(results[name], results["loop"], atol=1e-5)


def test_a_module_that_is_no_chain_has_no_chain_and_is_scored_all_the_same():
    net = Network(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)))
    weights, inputs = torch.randn(2, net.spec.n_weights), torch.randn(5, 4)
    assert net.chain is None
    assert net.logits(weights, inputs).shape == (2, 5, 3)


def test_cross_entropy_is_torchs_for_hard_and_soft_labels():
    logits, labels = torch.randn(2, 6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    expected = torch.stack([F.cross_entropy(net, labels) for net in logits])
    assert torch.allclose(cross_entropy(logits, labels), expected, atol=1e-6)
    soft = torch.softmax(torch.randn(6, 4), -1)
    assert torch.allclose(cross_entropy(logits, soft)[0], F.cross_entropy(logits[0], soft), atol=1e-6)


def test_accuracy_counts():
    logits = torch.eye(3)[None]
    assert accuracy(logits, torch.tensor([0, 1, 0])).item() == pytest.approx(2 / 3)


def test_accuracy_is_that_of_argmax_with_ties_and_nan():
    """A dead net has equal logits everywhere: it predicts the first class, not every class. A NaN predicts nothing."""
    logits = torch.randint(3, (4, 50, 5), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.arange(50) % 5
    assert torch.equal(accuracy(logits, labels), (logits.argmax(-1) == labels).double().mean(-1))
    assert accuracy(torch.zeros(1, 50, 5), labels).item() == pytest.approx(0.2)
    assert accuracy(torch.full((1, 50, 5), torch.nan), labels).item() == 0


def test_score_does_not_depend_on_the_chunk(tiny):
    weights, (inputs, labels) = tiny.draw_start("val", list(range(7))), tiny.examples("val")
    whole, parts = (
        score(tiny.network, weights, inputs, labels),
        score(tiny.network, weights, inputs, labels, plan=Plan("batched", 2, 2)),
    )
    assert torch.equal(whole[0], parts[0])
    assert torch.allclose(whole[1], parts[1], atol=1e-6)


def test_layer_errors_are_the_differences_of_pre_activations(deep):
    """Against a hand-made two-layer case, and zero on equal weights, and blind to weights that the data never excites."""
    weights, inputs = deep.draw_start("val", [0, 1]), deep.examples("val")[0][:16]
    assert not layer_errors(deep.network, weights, weights, inputs).any()
    shifted = deep.network.spec.unflatten(weights.clone())
    shifted["fc3.bias"] += 2.0
    error = layer_errors(deep.network, deep.network.spec.flatten(shifted), weights, inputs)
    assert torch.allclose(error, torch.full((2,), 4.0 / 3), atol=1e-5)
    blank = inputs.clone()
    blank[:, 0] = 0
    unseen = deep.network.spec.unflatten(weights.clone())
    unseen["fc1.weight"][:, :, 0] += 100.0
    assert not layer_errors(deep.network, deep.network.spec.flatten(unseen), weights, blank).any()


def test_layer_errors_of_a_cnn_are_the_differences_of_pre_activations():
    """Shifting one bias of the last layer by two, of ten: 4/10 in one of three layers."""
    task = build_task("mnist5k-cnn", channels=[3, 5])
    weights, inputs = task.draw_start("val", [0, 1]), torch.rand(4, 196, generator=torch.Generator().manual_seed(0))
    assert not layer_errors(task.network, weights, weights, inputs).any()
    shifted = task.network.spec.unflatten(weights.clone())
    shifted["fc.bias"][:, 3] += 2.0
    error = layer_errors(task.network, task.network.spec.flatten(shifted), weights, inputs)
    assert torch.allclose(error, torch.full((2,), 0.4 / 3), atol=1e-5)


def test_networks_of_one_architecture_are_traced_once_whatever_their_task(monkeypatch):
    """A policy asks for the bare network of an architecture, a file for that of its task; each with its own way would trace
    twice at every start."""
    calls, real = [], functional.traced_symmetry
    monkeypatch.setattr(functional, "traced_symmetry", lambda *given: (calls.append(1), real(*given))[1])
    arch = Arch.of("cnn", side=8, channels=[1, 3, 5])
    one, other, bare = functional.network_of(arch, "a"), functional.network_of(arch, "b"), functional.network_of(arch)
    assert one.symmetry is other.symmetry is bare.symmetry
    assert one.batched is bare.batched
    assert calls == [1]
    assert (one.task, other.task, bare.task) == ("a", "b", None)


@pytest.mark.parametrize("channels", [[1, 4], [1, 2, 4], [1, 2, 3, 3, 4]])
def test_a_cnn_of_any_depth_pools_as_often_as_it_is_told(channels):
    """14 -> 7 -> 3 pixels, so 9 positions for each of the last channels; one white pixel is seen through all of it."""
    net = Arch.of("cnn", side=14, channels=channels, pools=2).build()
    assert net.fc.in_features == 4 * 9
    dark, lit = torch.zeros(1, 196), torch.zeros(1, 196)
    lit[0, 0] = 9.0
    assert net(lit).shape == (1, 10)
    assert not torch.equal(net(lit), net(dark))


def test_a_cnn_pools_after_every_convolution_by_default_and_never_its_last_pixel_away():
    by_default = Arch.of("cnn", side=14, channels=[1, 2, 3, 4]).build()
    assert by_default.fc.in_features == 4
    with pytest.raises(InputError, match="none left"):
        Arch.of("cnn", side=14, channels=[1, 2, 3, 4, 5]).build()
    with pytest.raises(InputError, match="none left"):
        Arch.of("cnn", side=14, channels=[1, 2], pools=-1).build()
