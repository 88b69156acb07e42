"""The stages end to end at tiny budgets: what they write, resumption bit for bit, and that rewards alone teach."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import TINY_TRUNK, interrupt_at, make_policy, setup_at
from synthnet.config import compose
from synthnet.engine import shuffled
from synthnet.errors import InputError
from synthnet.grpo.config import GrpoConfig
from synthnet.grpo.loop import train_grpo
from synthnet.grpo.score import RewardConfig
from synthnet.lab.fork import run_command
from synthnet.policy.file import read_policy
from synthnet.policy.rollout import rollout, synthesize_flat
from synthnet.runs.journal import records
from synthnet.stages import first_policy
from synthnet.tasks import build_task
from synthnet.train import loop as training
from synthnet.train.distil import DistilConfig, Forces, note_lead, still_whitened
from synthnet.train.guards import GuardConfig
from synthnet.train.loop import LoopConfig, OptimConfig
from synthnet.train.pairs import PairsConfig, draw_chain, draw_pairs
from synthnet.train.snapshot import policy_of_run
from synthnet.train.validation import Validation

COLLAPSE = pytest.mark.filterwarnings("ignore:outputs of different seeds")  # untrained policies may do so

SMALL = ["task.hidden=[8]", "backbone.dim=16", "backbone.depth=2", "backbone.heads=2", "pairs.batch=8", "pairs.val_seeds=4"]
PAIRS = [*SMALL, "pairs.loop.updates=6", "pairs.loop.validate_every=2", "pairs.loop.checkpoint_every=2"]
GRPO = [*SMALL, "grpo.prompts=2", "grpo.num_generations=4", "grpo.val_seeds=4", "reward.batch=64"]
LOOP = ["loop.updates=5", "loop.validate_every=2", "loop.checkpoint_every=2"]


def _metrics(run_dir):
    """metrics.jsonl without times."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in rows]


def test_chains_rise_from_the_start_to_the_clean_state():
    draw, seen = torch.Generator().manual_seed(0), set()
    for _ in range(300):
        chain = draw_chain(PairsConfig(), 6, 4, draw)
        assert chain[0] == 0
        assert chain[-1] == 5
        assert chain == sorted(set(chain))
        assert len(chain) - 1 <= 4
        seen |= {(i, j) for i, j in pairwise(chain)}
    assert seen == {(i, j) for i in range(6) for j in range(i + 1, 6)}, "every pair i < j is reachable"
    assert draw_chain(PairsConfig(single=1, short=0, long=0, skipped=0), 6, 4, draw) == [0, 5]


def test_pairs_are_transitions_of_one_run():
    states = torch.arange(4).view(4, 1, 1) * 100.0 + torch.arange(6).view(1, 6, 1)
    batch = draw_pairs(PairsConfig(batch=200), states, 6, torch.Generator().manual_seed(0))
    source, target = batch.source.squeeze(1), batch.target.squeeze(1)
    assert torch.equal(source // 100, target // 100)
    assert (target > source).all()
    assert ((batch.steps_left == 1) == (target % 100 == 5)).all(), "one step left means the clean state is next"
    assert ((batch.rollin_steps == 0) | (source % 100 > 0)).all()


@pytest.mark.parametrize("rule", ["adamw", *(["muon"] if hasattr(torch.optim, "Muon") else [])])
def test_pairs_resume_equals_uninterrupted_and_foreign_settings_are_refused(zoo_dir, tmp_path, monkeypatch, rule):
    whole, split = tmp_path / "whole", tmp_path / "split"
    base = [*PAIRS, f"pairs.optim.rule={rule}", f"zoo_dir={zoo_dir}"]
    run_command("pairs", [*base, f"run_dir={whole}"])
    settings = [*base, f"run_dir={split}"]
    interrupt_at(3, lambda: run_command("pairs", settings), monkeypatch)
    run_command("pairs", settings)
    assert _metrics(split) == _metrics(whole)
    first, second = (load_file(path / "policy.safetensors") for path in (whole, split))
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(InputError, match="another configuration"):
        run_command("pairs", [*settings, "seed=1"])


@pytest.mark.slow
def test_a_run_that_died_before_or_after_its_checkpoint_resumes_exactly(zoo_dir, tmp_path, monkeypatch):
    """Killed without a chance to save: rows after the checkpoint (or all, where there is none) are dropped and made again."""
    run_command("pairs", [*PAIRS, f"zoo_dir={zoo_dir}", f"run_dir={tmp_path / 'whole'}"])
    apply = training.Run._begin
    for died_at in (2, 4):  # checkpoints are written after updates 2, 4 and 6
        settings = [*PAIRS, f"zoo_dir={zoo_dir}", f"run_dir={tmp_path / str(died_at)}"]
        calls = []

        def die(*arguments, calls=calls, died_at=died_at):
            calls.append(1)
            if len(calls) == died_at:
                raise SystemExit
            return apply(*arguments)

        with monkeypatch.context() as patched, pytest.raises(SystemExit):
            patched.setattr(training.Run, "_begin", die)
            run_command("pairs", settings)
        run_command("pairs", settings)
        assert _metrics(tmp_path / str(died_at)) == _metrics(tmp_path / "whole")


def test_zoos_and_policies_of_another_split_are_refused(zoo_dir, tmp_path, tiny):
    with pytest.raises(InputError, match="made on other images"):
        run_command("pairs", [*PAIRS, "task.split_seed=1", f"zoo_dir={zoo_dir}", f"run_dir={tmp_path / 'a'}"])
    with pytest.raises(InputError, match="not the net of"):
        run_command("pairs", [*PAIRS, "task.hidden=[9]", f"zoo_dir={zoo_dir}", f"run_dir={tmp_path / 'b'}"])
    policy = make_policy(tiny)
    policy.record = {"data": {"source": "digits", "split_seed": 1}}
    policy.save(tmp_path / "p.safetensors")
    with pytest.raises(InputError, match="made on other images"):
        run_command("grpo", [*GRPO, f"policy_from={tmp_path / 'p.safetensors'}", f"run_dir={tmp_path / 'c'}"])


@pytest.mark.parametrize(
    "setting",
    [
        "pairs.batch=0",
        "pairs.images=0",
        "pairs.val_steps=[]",
        "pairs.val_steps=[9]",
        "pairs.val_seeds=1",
        "backbone.heads=3",
        "pairs.optim.learning_rate=0",
        "pairs.loop.validate_every=0",
        "threads=-1",
        "pairs.single=-1",
        "pairs.runs=99",
    ],
)
def test_settings_out_of_range_are_refused(zoo_dir, tmp_path, setting):
    with pytest.raises(InputError):
        run_command("pairs", [*PAIRS, setting, f"zoo_dir={zoo_dir}", f"run_dir={tmp_path / 'run'}"])


@COLLAPSE
@pytest.mark.parametrize("stage", ["distil", "grpo"])
@pytest.mark.parametrize(
    "trunk",
    [[], ["tokens=chunk", "tokens.size=64"], ["tokens=chunk", "tokens.size=0", "backbone=flat_mlp"], ["action.head=x0"]],
)
def test_every_trunk_and_token_scheme_goes_through_the_same_stages(zoo_dir, tmp_path, stage, trunk):
    small = [s for s in SMALL if not (s.startswith("backbone") and "backbone=flat_mlp" in trunk)]
    pairs = [*trunk, *small, "pairs.loop.updates=2", f"zoo_dir={zoo_dir}", f"run_dir={tmp_path / 'pairs'}"]
    policy = run_command("pairs", pairs)
    extra = [f"{stage}.{setting}" for setting in LOOP]
    if stage == "grpo":
        extra += ["grpo.prompts=2", "grpo.num_generations=4", "grpo.val_seeds=4", "reward.batch=64"]
    else:
        extra += ["distil.anchor=0.1", "distil.nets=4", "distil.val_seeds=4", "distil.labels=soft"]
    made = run_command(stage, [*small, *extra, f"zoo_dir={zoo_dir}", f"policy_from={policy}", f"run_dir={tmp_path / stage}"])
    loaded = read_policy(made)
    assert [entry["stage"] for entry in loaded.record["stages"]] == ["pairs", stage]
    assert 1 <= loaded.record["best_k"] <= 6


@COLLAPSE
@pytest.mark.slow
def test_distil_learns_from_warped_images(zoo_dir, tmp_path, tiny):
    """Breaks if the stage forgets distil.warp: the first update's loss is then that of the images as they are."""
    make_policy(tiny).save(tmp_path / "p.safetensors")
    quick = ["distil.labels=hard", "distil.nets=4", "distil.val_seeds=4", "distil.loop.updates=1", f"zoo_dir={zoo_dir}"]
    losses = []
    for warp in (0, 0.3):
        out = tmp_path / f"warp-{warp}"
        run_command(
            "distil", [*SMALL, *quick, f"distil.warp={warp}", f"policy_from={tmp_path / 'p.safetensors'}", f"run_dir={out}"]
        )
        rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        losses += [row["target_loss"] for row in rows if "target_loss" in row]
    assert len(losses) == 2 and abs(losses[0] - losses[1]) > 1e-3
    for wrong in ("-0.1", "11", "inf"):
        with pytest.raises(InputError, match=r"distil\.warp must lie in 0 to 10"):
            run_command("distil", [*SMALL, *quick, f"distil.warp={wrong}", f"policy_from={tmp_path / 'p.safetensors'}"])


@COLLAPSE
@pytest.mark.slow
def test_grpo_resumes_bit_for_bit(zoo_dir, tmp_path, tiny, monkeypatch):
    make_policy(tiny).save(tmp_path / "p.safetensors")
    moving = ["grpo.beta=0.1", "grpo.sync_ref_model=true", "grpo.ref_model_sync_steps=2"]  # the reference is saved too
    base = [*GRPO, *moving, *[f"grpo.{setting}" for setting in LOOP], f"policy_from={tmp_path / 'p.safetensors'}"]
    run_command("grpo", [*base, f"run_dir={tmp_path / 'whole'}"])
    split = [*base, f"run_dir={tmp_path / 'split'}"]
    interrupt_at(3, lambda: run_command("grpo", split), monkeypatch)
    stopped = read_policy(policy_of_run(tmp_path / "split"))
    assert stopped.record["stages"][-1]["stopped_at_update"] == 3
    run_command("grpo", [*base[:-1], f"policy_from={tmp_path / 'split'}", f"run_dir={tmp_path / 'onwards'}"])
    run_command("grpo", split)
    assert policy_of_run(tmp_path / "split").name == "policy.safetensors"
    assert _metrics(tmp_path / "split") == _metrics(tmp_path / "whole")


@COLLAPSE
@pytest.mark.slow
def test_rewards_alone_teach_and_a_flipped_reward_unteaches(tmp_path, tiny):
    """No zoo, no labels through a gradient: accuracy on val of unseen seeds must rise; with the sign flipped it must not."""
    policy = make_policy(tiny, {"name": "set_transformer", "dim": 32, "depth": 1, "heads": 2}, sigma=0.3)
    with torch.no_grad():
        policy.trunk.head.weight.zero_()
        policy.trunk.head.bias.zero_()
    policy.save(tmp_path / "p.safetensors")
    validation = Validation.of_task(tiny, 32, [1], torch.device("cpu"))
    loop = LoopConfig(updates=100, validate_every=100, checkpoint_every=100)
    guard = GuardConfig(norm=None, drop=None)
    config = GrpoConfig(rollout="net", prompts=4, num_generations=32, steps=[1], val_seeds=8, loop=loop, guard=guard)
    config.optim = OptimConfig(learning_rate=3e-3, weight_decay=0.0, warmup=5, final_rate=1.0, ema=0.5)
    after = {}
    for name, sign in (("right", 1.0), ("flipped", -1.0)):
        reward = RewardConfig(accuracy=0.5 * sign, bounded_loss=0.5 * sign, batch=256)
        learner = read_policy(tmp_path / "p.safetensors").train()
        train_grpo(learner, tiny, config, reward, setup_at(tmp_path / name))
        after[name] = validation(learner)["accuracy_k1"]
    before = validation(read_policy(tmp_path / "p.safetensors"))["accuracy_k1"]
    assert after["right"] > before + 0.05
    assert after["flipped"] < before + 0.02


def test_policy_file_round_trip_serves_the_same_nets(tmp_path, tiny):
    policy = make_policy(tiny, learn_sigma=True)
    policy.save(tmp_path / "p.safetensors")
    start = tiny.draw_start("val", [0, 1])
    again = read_policy(tmp_path / "p.safetensors")
    assert torch.equal(synthesize_flat(again, start, 3, tiny.network), synthesize_flat(policy, start, 3, tiny.network))
    assert again.config == policy.config
    assert isinstance(again.log_sigma, torch.nn.Parameter)


@pytest.mark.filterwarnings("ignore:outputs of different seeds")
@pytest.mark.parametrize(
    "settings",
    [
        ["grpo.grouping=both", "grpo.steps=[2]", "grpo.loss_type=dr_grpo", "reward.gain=0.5", "reward.stability=0.1"],
        ["grpo.grouping=process", "grpo.importance_sampling_level=normalized", "grpo.delta=4", "reward.efficiency=1"],
        ["grpo.grouping=intra", "grpo.loss_type=grpo", "grpo.importance_sampling_level=sequence", "grpo.beta=0.1"],
        ["grpo.scale_rewards=batch", "reward.worst_class=1", "reward.calibration=1", "reward.dtype=bfloat16"],
    ],
)
def test_every_form_of_grpo_runs_and_logs_its_rewards(tmp_path, tiny, settings):
    make_policy(tiny).save(tmp_path / "policy.safetensors")
    run_dir = tmp_path / "run"
    small = ["task.hidden=[8]", "threads=1", "grpo.prompts=2", "grpo.num_generations=4", "grpo.val_seeds=4", "reward.batch=40"]
    loop = ["grpo.loop.updates=2", "grpo.loop.validate_every=2"]
    run_command("grpo", [*small, *loop, *settings, f"policy_from={tmp_path}/policy.safetensors", f"run_dir={run_dir}"])
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    logged = next(row for row in rows if "reward" in row)
    weights = {s.split("=")[0].removeprefix("reward.") for s in settings if s.startswith("reward.") and "dtype" not in s}
    assert {f"rewards/{name}" for name in weights | {"accuracy", "bounded_loss"}} <= set(logged)
    assert logged["ratio/max"] == pytest.approx(1, abs=1e-4)
    assert math.isfinite(logged["loss"])


def test_a_stopped_run_still_knows_which_images_it_was_trained_on(zoo_dir, tmp_path, monkeypatch):
    """Its best policy can be gone on from; on another split, its training images would be test images."""
    settings = [*PAIRS, f"zoo_dir={zoo_dir}", f"run_dir={tmp_path / 'p'}"]
    interrupt_at(3, lambda: run_command("pairs", settings), monkeypatch)
    with pytest.raises(InputError, match="split_seed is 0 there and 5 here"):
        run_command("grpo", [*GRPO, f"policy_from={tmp_path / 'p'}", "task.split_seed=5", f"run_dir={tmp_path / 'g'}"])


@pytest.mark.parametrize(
    ("stage", "setting"),
    [
        ("pairs", "pairs.batch=0"),
        ("distil", "distil.input_noise=inf"),
        ("grpo", "grpo.discount=-1"),
        ("grpo", "grpo.ref_model_sync_steps=0"),
        ("grpo", "reward.gain=nan"),
        ("critic", "critic.optim.ema=1"),
    ],
)
def test_what_a_patch_may_not_set_no_run_begins_with(tmp_path, stage, setting):
    """Neither the stage nor `run`, which would otherwise find out after the stages before it."""
    with pytest.raises(InputError, match=rf"{setting.partition('=')[0]} must lie in"):
        run_command(stage, [*SMALL, setting, f"run_dir={tmp_path / 'r'}"])
    with pytest.raises(InputError, match="must lie in"):
        run_command("run", [*SMALL, setting, f"stages=[zoo,{stage}]", f"run_dir={tmp_path / 'r'}"])
    assert not (tmp_path / "r").exists()


def test_a_setting_that_says_another_policy_than_policy_from_is_refused(tmp_path, tiny, monkeypatch):
    """Unless a forward reads it anew, as what mixtures of experts are weighed by. Ignored settings are wrong conclusions."""
    make_policy(tiny, {**TINY_TRUNK, "experts": 2}).save(tmp_path / "p.safetensors")
    monkeypatch.setattr("synthnet.stages.train_grpo", lambda policy, *others: policy)
    base = ["task.hidden=[8]", f"policy_from={tmp_path / 'p.safetensors'}"]
    for wrong in ("backbone.depth=3", "backbone=perceiver_io", "tokens.depth=ends", "k_max=5", "action.sigma=0.3"):
        with pytest.raises(InputError, match=rf"{wrong.partition('=')[0]} is .* here and .* in the policy"):
            run_command("grpo", [*base, wrong])
    same = run_command("grpo", [*base, "backbone.depth=2", "backbone=set_transformer", "backbone.balance=0.25"])
    assert same.settings == {"temperature": 1.0, "balance": 0.25}


def test_settings_that_a_policy_file_is_too_old_for_or_that_are_not_of_policies_are_no_matter(tmp_path, tiny, monkeypatch):
    """A file without tokens.depth means its default; critic.* are of a stage, though a policy has a field of that name."""
    policy = make_policy(tiny).with_critic(8, 0)
    policy.config.tokens = {"name": "unit"}
    policy.save(tmp_path / "p.safetensors")
    monkeypatch.setattr("synthnet.stages.train_critic", lambda policy, *others: policy)
    base = ["task.hidden=[8]", f"policy_from={tmp_path / 'p.safetensors'}"]
    made = run_command("critic", [*base, "critic.nets=9", "critic=default", "tokens.depth=relative", "backbone.experts=0"])
    assert made.critic is None, "it foresaw the policy as it was"
    with pytest.raises(InputError, match=r"tokens\.depth is ends here and relative"):
        run_command("critic", [*base, "tokens.depth=ends"])


def test_a_run_tells_what_a_policy_is_built_of_to_its_first_stage_only(tmp_path, monkeypatch):
    """GRPO leaves a policy with another action.sigma, patches with another backbone.balance; later stages take it as it is."""
    told = {}

    def pretend(stage, config, given, command):
        told[stage] = given
        return Path(stage)

    monkeypatch.setattr("synthnet.stages.run_stage", pretend)
    shape = {"backbone.dim", "action.sigma", "tokens.depth", "k_max"}
    run_command(
        "run",
        [
            "backbone.dim=16",
            "action.sigma=0.1",
            "tokens.depth=ends",
            "k_max=4",
            "grpo.sigma=0.05",
            "stages=[zoo,pairs,grpo,critic]",
            f"run_dir={tmp_path / 'r'}",
        ],
    )
    assert shape <= set(told["zoo"]) and shape <= set(told["pairs"])
    for later in ("grpo", "critic"):
        assert not shape & set(told[later]) and told[later]["grpo.sigma"] == 0.05


def test_distil_begins_with_a_new_policy_where_it_first_sees_standardised_logits(zoo_dir, tmp_path):
    """The same as from a file of that new policy, bit for bit; without, it would lead nowhere and is refused."""
    quick = ["distil.loop.updates=2", "distil.nets=2", "distil.images=32", "distil.val_seeds=2", "distil.optim.warmup=0"]
    base = [*SMALL, *quick, f"zoo_dir={zoo_dir}"]
    made = run_command("distil", [*base, "distil.standardised=2", f"run_dir={tmp_path / 'new'}"])
    config = compose(base)
    new = first_policy(config, config.build_task(), setup_at(tmp_path))
    new.save(tmp_path / "new.safetensors")
    same = run_command(
        "distil", [*base, "distil.standardised=2", f"policy_from={tmp_path}/new.safetensors", f"run_dir={tmp_path / 'old'}"]
    )
    first, second = load_file(made), load_file(same)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], value) for name, value in new.state_dict().items()), "it must have learned"
    assert read_policy(made).record["task"] == "digits-mlp"
    with pytest.raises(InputError, match=r"distil\.standardised=N"):
        run_command("distil", [*base, f"run_dir={tmp_path / 'none'}"])


def test_a_gradient_flows_through_the_graded_steps_only(tiny, policy):
    start = tiny.draw_start("zoo", [0, 1])

    def gradient(graded):
        policy.zero_grad()
        rollout(policy, start, 3, tiny.network, graded=graded)[-1].square().sum().backward()
        return policy.trunk.steps_left.table.weight.grad.abs().sum(1)

    assert (gradient(None)[:3] > 0).all(), "steps left 1, 2 and 3 are all told"
    assert gradient(1)[0] > 0
    assert not gradient(1)[1:].any()


def test_whitening_ends_for_a_member_once_its_losses_lead_somewhere():
    """By the running mean of its own; one that has led is whitened no more, and none is after the last such update."""
    config, state = DistilConfig(standardised=10, leads=0.5), {"update": 3, "losses": {"0": 1.2, "1": 1.0}}
    for turn in (0, 1):
        note_lead(state, turn, config, 2.3)
    assert [still_whitened(state, turn, config) for turn in (0, 1, 2)] == [True, False, True]
    state["losses"] |= {"1": 9.0, "0": 1.0}
    note_lead(state, 1, config, 2.3)
    note_lead(state, 0, config, 1.9)
    assert [still_whitened(state, turn, config) for turn in (0, 1, 2)] == [True, False, True]
    note_lead(state, 0, config, 2.3)
    assert not still_whitened(state, 0, config)
    assert not still_whitened({**state, "update": 10}, 2, config)


def test_the_log_says_how_long_logits_were_whitened(tmp_path):
    settings = ["task=digits-mlp", "task.hidden=[8]", "distil.labels=hard", "distil.nets=2", "distil.images=32", "threads=1"]
    settings += ["distil.loop.updates=4", "distil.standardised=3", "distil.val_seeds=2", "lab.tensorboard=false"]
    run_command("distil", [*settings, f"run_dir={tmp_path / 'run'}"])
    told = [row["whitened"] for row in records(tmp_path / "run" / "metrics.jsonl") if "whitened" in row]
    assert told == [1.0, 1.0, 1.0, 0.0]


@COLLAPSE
def test_outliers_cost_what_nets_are_sure_of_and_shuffling_keeps_the_numbers(tmp_path):
    """Nets of zeros are sure of nothing; as logits grow, the cost is the gap between the mean logit and the largest, less the
    log of the number of classes. A trained policy is surer of shuffled digits than one that was trained against it."""
    images = torch.arange(24.0).view(4, 6)
    mixed = shuffled(images, torch.Generator().manual_seed(0))
    assert torch.equal(mixed.sort(1).values, images)
    assert len({tuple(row.tolist()) for row in mixed - images[:, :1]}) > 1, "each in an order of its own"
    task = build_task("digits-mlp", hidden=[8])
    forces = Forces(DistilConfig(), PairsConfig(), task.members, (), torch.device("cpu"), 0, None)
    nets, images = torch.zeros(2, task.network.spec.n_weights), task.examples("train")[0][:8]
    assert forces.outliers(0, nets, images, 0) == pytest.approx(0, abs=1e-6)
    nets[:, -1] = 100.0  # the last class's bias, whatever the image
    assert forces.outliers(0, nets, images, 0) == pytest.approx(0.9 * 100 - math.log(10), rel=1e-4)
    settings = ["task=digits-mlp", "task.hidden=[8]", "distil.labels=hard", "distil.nets=4", "distil.images=64", "threads=1"]
    settings += [
        "distil.standardised=5",
        "distil.loop.updates=30",
        "distil.val_seeds=2",
        "lab.tensorboard=false",
        "distil.optim.learning_rate=3e-3",
    ]
    sure = []
    for weight in (1e-6, 3.0):
        out = tmp_path / str(weight)
        run_command("distil", [*settings, f"distil.outliers={weight}", f"run_dir={out}"])
        sure.append([row["outliers"] for row in records(out / "metrics.jsonl") if "outliers" in row])
    assert sure[0][0] == sure[1][0]
    assert sure[1][-1] < 0.7 * sure[0][-1]


def test_outliers_are_for_classes(tmp_path):
    with pytest.raises(InputError, match=r"pass distil.outliers=0"):
        run_command(
            "distil",
            ["task=benchmarks/problems.py:diabetes", "distil.labels=hard", "distil.outliers=1", "distil.standardised=1"],
        )
