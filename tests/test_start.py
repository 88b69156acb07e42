"""Start weights: whatever standard initialisation they were drawn with is heard as loud as the policy expects; what no step can
mend is refused."""

from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import init

import synthnet
from conftest import make_policy
from synthnet.cli import main
from synthnet.engine import open_net
from synthnet.nets import draw_init, looks_trained, match_start, one_sided
from synthnet.policy import start_weights
from synthnet.tasks import build_task, grow_twins


@pytest.fixture(scope="module")
def digits():
    return build_task("digits-mlp")


def _start(task, seed=0):
    return task.draw_start("user", [seed])[0]


def _drawn(task, weight, bias=torch.zeros_like):
    torch.manual_seed(0)
    tensors = task.network.spec.unflatten(_start(task))
    return {name: weight(value.clone()) if value.ndim > 1 else bias(value) for name, value in tensors.items()}


@pytest.mark.parametrize("name", ["digits-mlp", "mnist5k-cnn", "digits-resnet", "digits-vit"])
def test_default_start_weights_keep_their_bits(name):
    task = build_task(name)
    for flat in task.draw_start("user", list(range(40))):
        matched, factors = match_start(task.network.spec, flat)
        assert factors == {}
        assert matched is flat
        assert looks_trained(task.network.spec, flat) == []


@pytest.mark.parametrize(
    "law",
    [init.kaiming_normal_, init.xavier_uniform_, init.orthogonal_, init.normal_, lambda v: init.trunc_normal_(v, std=1e-4),
     lambda v: v.mul_(6e4), lambda v: v.mul_(1e-20), lambda v: init.uniform_(v, 0, 1), lambda v: init.sparse_(v, 0.5)],
)  # fmt: skip
def test_other_laws_are_scaled_to_the_same_loudness_and_zero_biases_stay(digits, law):
    spec = digits.network.spec
    flat = spec.flatten(_drawn(digits, law))
    matched, factors = match_start(spec, flat)
    before, after = spec.unflatten(flat), spec.unflatten(matched)
    for name, value in after.items():
        if value.ndim == 1:
            assert not value.any()
            continue
        expected = (1 / 3 / value[0].numel()) ** 0.5
        assert value.square().mean().sqrt() == pytest.approx(expected, rel=0.2)
        torch.testing.assert_close(value, before[name] * factors.get(name, 1.0))
    assert looks_trained(spec, flat) in ([], *([[n] for n in after] if law.__name__ == "<lambda>" else ()))


def test_an_initialisation_of_another_scale_ends_where_the_default_does(digits, tmp_path):
    """N(0, 1) instead of ±1/√fan_in: 27 % before scales were matched."""
    save_file(_drawn(digits, init.normal_), tmp_path / "normal.safetensors")
    with pytest.warns(UserWarning, match="scaled to the root mean square of start weights .fc1.weight x 0.07"):
        synthnet.synthesize(tmp_path / "normal.safetensors", steps=2, out=tmp_path / "made.safetensors")
    inputs, labels = digits.examples("val")
    made = open_net(tmp_path / "made.safetensors")
    assert (made.net.logits(made.flat[None], inputs)[0].argmax(-1) == labels).float().mean() > 0.9


UNITS = "of the 32 units of group hidden1, only 1 differ"


@pytest.mark.parametrize(
    ("weight", "bias", "reason"),
    [
        (torch.zeros_like, torch.zeros_like, UNITS),
        (lambda v: torch.full_like(v, 0.1), torch.zeros_like, "fc1.weight is constant"),
        (lambda v: torch.full_like(v, 6e4), torch.zeros_like, "fc1.weight is constant"),
        (lambda v: 3 + 1e-6 * torch.randn_like(v), torch.zeros_like, "fc1.weight is constant"),
        (lambda v: v * 1e-40, torch.zeros_like, "too small for float32"),
        (lambda v: v[:1].expand_as(v)[:, :1] * torch.ones_like(v), torch.zeros_like, "constant"),
    ],
)
def test_what_no_step_can_mend_is_refused(digits, tmp_path, capsys, weight, bias, reason):
    save_file({k: v.contiguous() for k, v in _drawn(digits, weight, bias).items()}, tmp_path / "in.safetensors")
    assert main(["synthesize", str(tmp_path / "in.safetensors"), "-o", str(tmp_path / "out.safetensors")]) == 2
    said = capsys.readouterr().err
    assert (reason in said and "at random" in said) or "tell apart" in said
    assert not (tmp_path / "out.safetensors").exists()


def test_units_that_are_copies_of_each_other_are_refused_and_a_pair_is_not(digits, tmp_path):
    tensors = {name: value.clone() for name, value in digits.network.spec.unflatten(_start(digits)).items()}

    def copied(units):
        for name, of_unit in (("fc1.weight", 0), ("fc1.bias", 0), ("fc2.weight", 1)):
            value = tensors[name].movedim(of_unit, 0)
            value[:units] = value[:1].clone()
        save_file(tensors, tmp_path / "in.safetensors")
        return [open_net(tmp_path / "in.safetensors")]

    policy = make_policy(digits)
    (start,) = start_weights(policy, copied(2))
    assert digits.network.symmetry.told_apart(start) == {"hidden1": 31}
    with pytest.raises(synthnet.InputError, match="of the 32 units of group hidden1, only 15 differ"):
        start_weights(policy, copied(18))


def test_a_trained_net_as_the_start_is_said_to_look_like_one(digits, tmp_path):
    twins = grow_twins(digits, digits.draw_start("user", [0, 1]))
    for flat in twins:
        assert looks_trained(digits.network.spec, flat) == ["fc1.weight"]
    save_file(dict(digits.network.spec.unflatten(twins[0])), tmp_path / "twin.safetensors")
    with pytest.warns(UserWarning) as said:
        start_weights(make_policy(digits), [open_net(tmp_path / "twin.safetensors")])
    assert any("looks trained" in str(each.message) for each in said)


def test_norms_begin_as_the_identity_and_one_sided_weights_are_told(tmp_path):
    """A norm's scale of 10 was passed on in silence, and nets came out at chance."""
    spec = build_task("digits-vit").network.spec
    flat = draw_init(spec, torch.Generator().manual_seed(0))
    places, odd = spec.slices(), flat.clone()
    names = [name for name in places if "norm" in name and name.endswith("weight")]
    for name in names:
        odd[places[name]] = 10.0
    matched, factors = match_start(spec, odd)
    assert torch.equal(matched, flat)
    assert factors == dict.fromkeys(names, 1.0)
    assert one_sided(spec, flat) == []
    assert "embed.weight" in one_sided(spec, flat.abs())


@pytest.mark.parametrize("sample", [None, 3])
def test_a_net_is_made_alike_whichever_go_with_it(tmp_path, monkeypatch, sample):
    """Through the policy together, two at a time, or each alone; what is drawn is each file's own."""
    make_policy(build_task("digits-mlp", hidden=[8])).save(tmp_path / "p.safetensors")
    assert main(["init", "--task", "digits-mlp", "--set", "hidden=[8]", "--count", "5", "-o", str(tmp_path / "w")]) == 0
    made = lambda **more: [  # noqa: E731
        state.tensors["fc1.weight"] - load_file(path)["fc1.weight"]
        for state, path in zip(
            synthnet.synthesize(tmp_path / "w", tmp_path / "p.safetensors", 2, sample=sample, **more),
            sorted((tmp_path / "w").iterdir()),
            strict=True,
        )
    ]
    together = made()
    monkeypatch.setattr("synthnet.policy.serving.TOGETHER", 2)
    for other in (made(), made(memory="2G")):
        assert all(torch.allclose(one, again, atol=1e-5) for one, again in zip(together, other, strict=True))
    if sample is not None:
        assert min((one - other).abs().max() for one, other in pairwise(together)) > 1e-3
