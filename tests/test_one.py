"""One policy for unlike nets: members drawn by what they lack, experts balanced over time."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from conftest import interrupt_at, make_policy
from problem import PROBLEM
from synthnet.cli import main
from synthnet.errors import InputError
from synthnet.lab.fork import run_command
from synthnet.nets import read_weights
from synthnet.policy import covering, read_policy, synthesize_flat
from synthnet.tasks import build_task, check_same_data, grow_twins, judge, with_data
from synthnet.train.distil import DistilConfig, next_member, note_loss
from synthnet.train.validation import CollapseWatch, Validation


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:outputs of different seeds")
@pytest.mark.parametrize("members", ["lacking", "behind"])
def test_unlike_nets_are_learned_by_one_policy_with_experts_and_resumed_exactly(members, tmp_path, monkeypatch):
    """Two nets of task one, drawn by what they lack; what they are drawn by, and loads, survive an interruption."""
    base = ["task=one", "task.nets=[digits-mlp,digits-mlp-2]", "threads=1", "backbone.dim=16", "backbone.heads=2",
            "backbone.depth=1", "backbone.data=true", "backbone.experts=2", "backbone.balance_by=time", "distil.labels=hard",
            f"distil.members={members}", "distil.standardised=2", "distil.nets=3", "distil.images=16", "distil.val_seeds=2",
            "distil.apart=1", "distil.loop.updates=6", "distil.loop.validate_every=3", "distil.loop.checkpoint_every=2",
            "lab.tensorboard=false"]  # fmt: skip
    whole, split = tmp_path / "whole", tmp_path / "split"
    run_command("distil", [*base, f"run_dir={whole}"])
    interrupt_at(4, lambda: run_command("distil", [*base, f"run_dir={split}"]), monkeypatch)
    run_command("distil", [*base, f"run_dir={split}"])
    first, second = (load_file(path / "policy.safetensors") for path in (whole, split))
    assert all(torch.equal(first[name], second[name]) for name in first)
    policy = read_policy(whole / "policy.safetensors")
    assert [arch.label for arch in policy.archs] == ["mlp-64-32-10", "mlp-64-24-24-10"]
    usage = next(value for name, value in policy.state_dict().items() if name.endswith("usage"))
    assert usage.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert usage.unique().numel() > 1


def test_the_member_that_lacks_most_has_the_most_turns():
    config, state = DistilConfig(members="lacking"), {"update": 0}
    for turn, loss in enumerate((3.0, 1.0, 0.0)):
        assert next_member({**state, "update": turn}, config, 3, 0) == turn
        note_loss(state, turn, loss)
    turns = [next_member({**state, "update": update}, config, 3, 0) for update in range(3, 803)]
    assert turns.count(2) == 0
    assert 0.7 < turns.count(0) / 800 < 0.8
    note_loss(state, 1, 11.0)
    assert state["losses"]["1"] == pytest.approx(0.9 * 1.0 + 0.1 * 11.0)
    note_loss(state, 1, math.inf)
    assert state["losses"]["1"] == pytest.approx(2.0)


def test_half_the_turns_go_by_what_members_lack_to_their_twins():
    config, state = DistilConfig(members="behind"), {"update": 1}
    assert next_member(state, config, 3, 0) == 1  # nothing is known yet
    assert next_member({**state, "behind": [0.0, 0.0, 0.0]}, config, 3, 0) == 1  # nothing is lacking
    turns = [next_member({"update": update, "behind": [0.03, 0.01, 0.0]}, config, 3, 0) for update in range(1200)]
    shares = [turns.count(turn) / 1200 for turn in range(3)]
    assert shares == pytest.approx([1 / 6 + 3 / 8, 1 / 6 + 1 / 8, 1 / 6], abs=0.04)


def test_behind_is_what_the_metric_lacks_to_twins_on_val():
    task = build_task("one", nets=["digits-mlp", "digits-mlp-narrow"])
    watch = CollapseWatch(Validation.of_task(task, 2, [1], torch.device("cpu")))
    metrics = {f"accuracy_k1/{label}": value for label, value in zip(watch.validation.labels, (0.5, 1.0), strict=True)}
    member = task.members[0]
    twins = grow_twins(member, member.draw_start("val", [0, 1]))
    expected = judge(member, twins, *member.examples("val"))[0].mean().item() - 0.5
    assert watch.behind(metrics) == pytest.approx([expected, 0.0])


def test_one_net_is_behind_nobody():
    with pytest.raises(InputError, match=r"pass distil.members=turns"):
        run_command("distil", ["task=digits-mlp", "distil.members=behind", "distil.labels=hard", "distil.standardised=1"])


def test_a_loss_that_is_no_number_leaves_the_chances_as_they_were():
    state = {"update": 5}
    note_loss(state, 0, math.nan)
    assert state["losses"] == {}
    for turn in range(2):
        note_loss(state, turn, 1.0)
    note_loss(state, 0, math.nan)
    assert next_member(state, DistilConfig(members="lacking"), 2, 0) in (0, 1)


def test_columns_for_other_nets_are_added_and_what_was_learned_is_kept(tmp_path):
    """Of its own net the grown policy makes what it made; of a net with edges and norms, which it could not read, it now makes
    something; and its file reads back."""
    own, other = build_task("digits-mlp", hidden=[6]), build_task("digits-resnet", width=8)
    policy = make_policy(own)
    start, far = own.draw_start("val", [0, 1]), other.draw_start("val", [0, 1])
    before = synthesize_flat(policy, start, 2, own.network)
    with pytest.raises(InputError, match="does not cover"):
        policy.layout(other.network)
    grown = covering(policy, [other.arch], 0)
    assert covering(grown, [other.arch, own.arch], 0) is grown
    assert torch.allclose(synthesize_flat(grown, start, 2, own.network), before, atol=1e-5)
    made, layout = synthesize_flat(grown, far, 2, other.network)[:, -1], grown.layout(other.network)
    new = torch.tensor([key not in policy.vocabulary for key in layout.vocabulary])[layout.column_of.long()]
    assert torch.allclose(made[:, new], far[:, new], atol=1e-6), "ways out begin at zero"
    assert not torch.allclose(made[:, ~new], far[:, ~new], atol=1e-3)
    assert grown.trunk.blocks[0].exchange.together is not None
    grown.save(tmp_path / "p.safetensors")
    again = read_policy(tmp_path / "p.safetensors")
    assert torch.equal(synthesize_flat(again, start, 2, own.network), synthesize_flat(grown, start, 2, own.network))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:outputs of different seeds")
def test_a_policy_goes_on_with_a_problem_of_the_users_own(tmp_path, monkeypatch, capsys):
    """Other inputs, other data: it keeps what it knows, its file says of which examples, and both nets are served."""
    (tmp_path / "problem_of_mine.py").write_text(PROBLEM)
    monkeypatch.chdir(tmp_path)
    tiny = build_task("digits-mlp", hidden=[6])
    policy = make_policy(tiny)
    policy.record = {"task": "digits-mlp", "data": tiny.data_key, "stages": []}
    policy.save("p.safetensors")
    base = ["task=problem_of_mine.py:sides", "threads=1", "distil.labels=hard", "distil.steps=[1]", "distil.nets=3",
            "distil.images=16", "distil.val_seeds=3", "distil.loop.updates=2", "distil.loop.validate_every=1",
            "distil.standardised=1", "lab.tensorboard=false"]  # fmt: skip
    run_command("distil", [*base, "policy_from=p.safetensors", "run_dir=run"])
    after = read_policy("run/policy.safetensors")
    assert len(after.record["data"]["joint"]) == 2
    assert len(after.archs) == 2
    assert [name for name, _ in after.record["members"]] == ["digits-mlp", "sides"]
    assert main(["init", "--task", "problem_of_mine.py:sides", "-o", "w.safetensors"]) == 0
    assert main(["synthesize", "w.safetensors", "--policy", "run/policy.safetensors", "-o", "o.safetensors"]) == 0
    told = read_weights("o.safetensors").metadata
    assert told["synthnet.task"] == "sides"
    assert json.loads(told["synthnet.inputs"])["shape"] == [5]
    start = tiny.draw_start("val", [0])
    assert synthesize_flat(after, start, 1, tiny.network).shape == (1, 1, start.shape[1])
    split = [*base, "policy_from=run", "task.split_seed=1", "run_dir=other"]
    with pytest.raises(InputError, match="made on other images"):
        run_command("distil", split)


def test_what_a_policy_was_made_on_is_added_to_and_never_split_another_way():
    digits, other = ({"source": "digits", "split_seed": split} for split in (0, 1))
    mnist, mine = {"source": "mnist5k", "split_seed": 0}, {"sha256": "ab", "split_seed": 0}
    both = {"joint": [digits, mnist]}
    assert with_data(None, digits) == digits
    assert with_data(digits, digits) == digits
    assert with_data(digits, mnist) == both
    assert with_data(both, mine) == {"joint": [digits, mnist, mine]}
    assert with_data({"joint": [digits, mnist, mine]}, {"joint": [mine, digits]}) == {"joint": [digits, mnist, mine]}
    assert with_data(both, other) == both, "which is refused:"
    task = build_task("digits-mlp", split_seed=1)
    with pytest.raises(InputError, match="made on other images"):
        check_same_data(both, task, "it")
    check_same_data(both, build_task("one", nets=["digits-mlp", "digits-resnet"]), "it")
    with pytest.raises(InputError, match="made on other images"):
        check_same_data(digits, build_task("one", nets=["digits-mlp", "mnist5k-mlp"]), "it")
