"""The stages end to end at tiny budgets: what they write, resumption bit for bit, and that rewards alone teach."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import COLLAPSE, SMALL, TINY_TRUNK, interrupt_at, make_policy, setup_at
from synthnet.errors import InputError
from synthnet.grpo.config import GrpoConfig
from synthnet.grpo.loop import train_grpo
from synthnet.grpo.score import RewardConfig
from synthnet.lab.fork import run_command
from synthnet.policy.file import read_policy
from synthnet.policy.rollout import synthesize_flat
from synthnet.train import loop as training
from synthnet.train.guards import GuardConfig
from synthnet.train.loop import LoopConfig, OptimConfig
from synthnet.train.pairs import PairsConfig, draw_chain, draw_pairs
from synthnet.train.snapshot import policy_of_run
from synthnet.train.validation import Validation

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
