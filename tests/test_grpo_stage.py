"""The GRPO stage as a whole: guards, hooks, parts of a policy, the critic, calibration."""

import json
import math

import pytest
import torch

from conftest import TINY_TRUNK, make_policy, setup_at
from synthnet.cli import main
from synthnet.commands.lab import calibrate
from synthnet.errors import InputError
from synthnet.grpo.calibrate import Measured, recommended
from synthnet.grpo.config import GrpoConfig
from synthnet.grpo.loop import train_grpo
from synthnet.grpo.score import RewardConfig
from synthnet.lab.fork import run_command
from synthnet.policy import steps as ways
from synthnet.policy.critic import Critic, best_k, lag
from synthnet.policy.file import read_policy
from synthnet.policy.rollout import synthesize_flat
from synthnet.settings import option
from synthnet.synthesis import synthesize
from synthnet.tasks import build_task
from synthnet.train.critic import prospects
from synthnet.train.guards import Anchor, GuardConfig
from synthnet.train.loop import LoopConfig
from synthnet.train.pairs import refuse_codes
from synthnet.train.validation import Validation

QUICK = {"prompts": 2, "num_generations": 4, "steps": [1, 2], "val_seeds": 4}
LINE = [f"grpo.{name}={value}" for name, value in QUICK.items() if name != "steps"]
SMALL = ["task.hidden=[8]", "threads=1", *LINE, "reward.batch=40", "grpo.loop.updates=2", "grpo.loop.validate_every=2"]
pytestmark = pytest.mark.filterwarnings("ignore:outputs of different seeds")


def _config(**changes) -> GrpoConfig:
    loop = LoopConfig(updates=4, validate_every=1, checkpoint_every=4)
    return GrpoConfig(**{**QUICK, "loop": loop, "signal_every": 0, **changes})


def _rows(run_dir) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


# --- guards --------------------------------------------------------------------------------------------------------


def test_a_guard_names_the_first_limit_that_is_broken():
    guard, fine = GuardConfig(kl=0.1, norm=2.0, drop=0.1), {"score": 0.8, "drift/kl": 0.05, "drift/norm": 1.5}
    assert guard.reason(fine, 0.85) is None
    assert "kl 0.2" in guard.reason({**fine, "drift/kl": 0.2}, 0.85)
    assert "norm" in guard.reason({**fine, "drift/norm": math.nan}, 0.85)
    assert "fell" in guard.reason({**fine, "score": 0.7}, 0.85)
    assert GuardConfig(norm=None, drop=None).reason({"score": -1.0, "drift/norm": 99.0}, 1.0) is None


def test_drift_is_nothing_for_the_policy_itself_and_grows_with_a_shift(tiny):
    policy, moved = make_policy(tiny), make_policy(tiny)
    validation = Validation.of_task(tiny, 4, [1, 2], torch.device("cpu"))
    assert Anchor.of(policy, validation).drift(policy, validation.finals(policy, 2))["drift/kl"] == 0
    with torch.no_grad():
        moved.trunk.head.bias += 0.05  # one sigma: a KL of a half per weight
    assert Anchor.of(policy, validation).drift(moved, validation.finals(moved, 2))["drift/kl"] == pytest.approx(0.5, rel=1e-3)


@pytest.mark.filterwarnings("ignore:rolled back by a guard", "ignore:stopped by a guard")
@pytest.mark.parametrize(("action", "updates"), [("rollback", 4), ("stop", 1)])
def test_beyond_a_limit_a_run_goes_back_or_stops_and_says_why(tmp_path, tiny, action, updates):
    guard = GuardConfig(kl=1e-12, action=action, rollbacks=9)
    train_grpo(make_policy(tiny), tiny, _config(guard=guard, select="last"), RewardConfig(batch=40), setup_at(tmp_path / "run"))
    rows = _rows(tmp_path / "run")
    assert [row["action"] for row in rows if "guard" in row][:1] == [action]
    kept, start = read_policy(tmp_path / "run" / "policy.safetensors").state_dict(), make_policy(tiny).state_dict()
    assert all(torch.equal(kept[name], value) for name, value in start.items())  # what broke the limit is never the best
    assert "kl" in next(row["guard"] for row in rows if "guard" in row)
    rates = [row["learning_rate"] for row in rows if "learning_rate" in row]
    assert len(rates) == updates
    if action == "rollback":
        free = GuardConfig(norm=None, drop=None)
        train_grpo(make_policy(tiny), tiny, _config(guard=free), RewardConfig(batch=40), setup_at(tmp_path / "free"))
        plain = [row["learning_rate"] for row in _rows(tmp_path / "free") if "learning_rate" in row]
        assert rates == pytest.approx([rate / 2**n for n, rate in enumerate(plain)])


# --- reward functions of the user's own ----------------------------------------------------------------------------


def test_a_plain_function_is_a_reward_and_none_means_does_not_apply(tmp_path, tiny):
    seen = {}

    def size(*, prompts, completions, trainer_state, log_metric, images, labels):
        seen.update(n=len(completions), update=trainer_state["update"], names=set(prompts[0]), images=len(images))
        log_metric("largest", max(c.weights["fc1.weight"].abs().max() for c in completions))
        return [None if i % 4 == 3 else float(c.n_steps) for i, c in enumerate(completions)]

    reward = RewardConfig(accuracy=0.0, bounded_loss=0.0, batch=40)
    with pytest.warns(UserWarning, match="spread"):  # all rollouts of a group have one K
        train_grpo(make_policy(tiny), tiny, _config(), reward, setup_at(tmp_path / "run"), reward_funcs=[(size, 2.0)])
    assert seen == {"n": 8, "update": 3, "names": {t.name for t in tiny.network.spec.tensors}, "images": 40}
    row = next(row for row in _rows(tmp_path / "run") if "reward" in row)
    assert row["rewards/size"] == row["n_steps"]
    assert row["reward"] == 2 * row["n_steps"]
    assert row["hook/largest"] > 0
    assert row["reward_std"] == 0


def test_hooks_of_the_wrong_length_are_refused_and_coroutines_are_fine(tmp_path, tiny):
    async def ones(*, completions, **_):
        return [1.0] * len(completions)

    def infinite(*, completions, **_):
        return [-math.inf] * len(completions)

    train_grpo(make_policy(tiny), tiny, _config(), RewardConfig(batch=40), setup_at(tmp_path / "a"), reward_funcs=[ones])

    def broken(**_):
        raise KeyError("labels")

    bad = {
        "should return 8 numbers": lambda **_: [1.0],
        "KeyError": broken,
        "TypeError": lambda **_: None,
        "infinite": infinite,
    }
    for number, (reason, function) in enumerate(bad.items()):
        with pytest.raises(InputError, match=reason):
            where = tmp_path / str(number)
            train_grpo(make_policy(tiny), tiny, _config(), RewardConfig(batch=40), setup_at(where), reward_funcs=[function])
    with pytest.raises(InputError, match="callable"):
        train_grpo(make_policy(tiny), tiny, _config(), RewardConfig(), setup_at(tmp_path / "z"), reward_funcs=[3])
    with pytest.raises(InputError, match="built-in terms"):
        chosen = _config(select="reward")
        train_grpo(make_policy(tiny), tiny, chosen, RewardConfig(), setup_at(tmp_path / "z"), reward_funcs=[ones])


def test_a_reward_function_in_a_file_moves_the_policy_its_way(tmp_path, tiny):
    """Reward: minus the size of the output's weights. The norm on val must fall, as it does not for the same run flipped."""
    (tmp_path / "mine.py").write_text(
        "def small(*, completions, **_):\n    return [-float(c.weights['fc1.weight'].norm()) for c in completions]\n"
    )
    make_policy(tiny, sigma=0.2).save(tmp_path / "p.safetensors")
    norms = {}
    for name, control in (("right", "null"), ("flipped", "flip")):
        rewards = [f"reward.python=[{tmp_path}/mine.py:small]", "reward.accuracy=0", "reward.bounded_loss=0"]
        loop = ["grpo.loop.updates=40", "grpo.loop.validate_every=40", "grpo.optim.ema=0.5", "grpo.optim.learning_rate=1e-3"]
        more = [f"grpo.control={control}", "grpo.guard.drop=null", "grpo.num_generations=16", "grpo.steps=[1]"]
        path = [f"policy_from={tmp_path}/p.safetensors", f"run_dir={tmp_path / name}"]
        run_command("grpo", ["task=digits-mlp", *SMALL, *rewards, *loop, *more, *path])
        last = _rows(tmp_path / name)[-1]
        norms[name] = last["val/drift/norm"]
    before = _rows(tmp_path / "right")[0]["val/drift/norm"]
    assert norms["right"] < before < norms["flipped"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["reward.python=[nowhere.py:f]"], "does not exist"),
        (["reward.python=[nowhere.txt:f]"], "FILE.py:FUNCTION"),
        (["reward.python_weights=[1.0]"], "1 numbers for 0"),
    ],
)
def test_bad_hooks_are_refused(tmp_path, tiny, settings, reason):
    make_policy(tiny).save(tmp_path / "p.safetensors")
    with pytest.raises(InputError, match=reason):
        run_command("grpo", ["task=digits-mlp", *SMALL, *settings, f"policy_from={tmp_path}/p.safetensors"])


# --- forms of a run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        ["grpo.action=code", "grpo.code_dim=6", "grpo.sigma=0.5"],
        ["grpo.trainable=lora", "grpo.lora_rank=2", "grpo.beta=0.1", "grpo.sync_ref_model=true", "grpo.ref_model_sync_steps=1"],
        ["grpo.trainable=film", "grpo.select=reward", "reward.diversity=0.1", "reward.robustness=0.1", "reward.stability=0.1"],
        ["reward.efficiency=0.5", "reward.step_cost=0.01", "grpo.current_states=0.5", "grpo.grouping=both", "grpo.steps=[2,3]"],
        [
            "grpo.control=constant",
            "grpo.step_rewards=false",
            "grpo.grouping=process",
            "grpo.num_iterations=2",
            "grpo.target_kl=1",
        ],
    ],
)
def test_forms_of_grpo_run_and_their_policies_serve(tmp_path, tiny, settings):
    make_policy(tiny).save(tmp_path / "p.safetensors")
    run_dir = tmp_path / "run"
    made = run_command("grpo", [*SMALL, *settings, f"policy_from={tmp_path}/p.safetensors", f"run_dir={run_dir}"])
    policy, before = read_policy(made), make_policy(tiny)
    rows = [row for row in _rows(run_dir) if "ratio/max" in row]
    assert len(rows) == 2 and all(row["ratio/max"] < 2 and row["grad_norm"] > 0 for row in rows)
    assert any("signal/half_batch_cosine" in row for row in rows)
    start = tiny.draw_start("val", [0, 1])
    finals = synthesize_flat(policy, start, 2, tiny.network)
    assert finals.isfinite().all() and finals.shape == synthesize_flat(before, start, 2, tiny.network).shape


def test_a_policy_over_codes_is_refused_where_weights_are_compared_and_samples_its_codes(tmp_path, tiny):
    coded = make_policy(tiny).with_critic(8, 0).with_code(6, 0)
    assert torch.equal(coded.critic.layers[1].weight, make_policy(tiny).with_critic(8, 0).critic.layers[1].weight)
    with pytest.raises(InputError, match="latent codes"):
        refuse_codes(coded)
    coded.save(tmp_path / "p.safetensors")
    for settings, reason in (([], "code_dim=6"), (["grpo.action=code"], "code_dim=6")):
        with pytest.raises(InputError, match=reason):
            run_command("grpo", [*SMALL, *settings, f"policy_from={tmp_path}/p.safetensors", f"run_dir={tmp_path}/run"])
    assert main(["init", "--task", "digits-mlp", "--set", "hidden=[8]", "-o", str(tmp_path / "w.safetensors")]) == 0
    drawn = [synthesize(tmp_path / "w.safetensors", tmp_path / "p.safetensors", 1, sample=seed) for seed in (None, 1, 1, 2)]
    mean, one, again, other = (state.tensors["fc1.weight"] for state in drawn)
    assert torch.equal(one, again) and not torch.equal(one, other) and not torch.equal(one, mean)


def test_a_stage_that_changes_a_policy_drops_its_critic(tmp_path, tiny):
    make_policy(tiny).with_critic(8, 0).save(tmp_path / "p.safetensors")
    made = run_command("grpo", [*SMALL, f"policy_from={tmp_path}/p.safetensors", f"run_dir={tmp_path}/run"])
    assert read_policy(tmp_path / "p.safetensors").critic is not None
    assert read_policy(made).critic is None


@pytest.mark.parametrize("head", ["delta", "x0"])
@pytest.mark.parametrize(
    ("backbone", "tokens"),
    [
        ({"name": "flat_mlp", "hidden": 8}, {"name": "chunk"}),
        (TINY_TRUNK, {"name": "chunk"}),
        (TINY_TRUNK, {"name": "unit"}),
        ({**TINY_TRUNK, "experts": 2}, {"name": "unit"}),
        ({"name": "perceiver_io", "dim": 16, "heads": 2, "edge_dim": 8, "experts": 2}, {"name": "unit"}),
        ({"name": "edge_exchange", "dim": 16, "heads": 2, "edge_dim": 8}, {"name": "unit"}),
    ],
    ids=["flat-chunk", "set-chunk", "set-unit", "set-experts", "perceiver-experts", "exchange"],
)
def test_every_trunk_token_scheme_and_head_goes_through_the_same_loop(tmp_path, tiny, backbone, tokens, head):
    make_policy(tiny, backbone, tokens, head=head).save(tmp_path / "p.safetensors")
    off = ["grpo.guard.norm=null", "grpo.guard.drop=null"]
    made = run_command("grpo", [*SMALL, *off, f"policy_from={tmp_path}/p.safetensors", f"run_dir={tmp_path}/run"])
    before, after = (read_policy(path).state_dict() for path in (tmp_path / "p.safetensors", made))
    rows = [row for row in _rows(tmp_path / "run") if "grad_norm" in row]
    assert len(rows) == 2 and all(row["grad_norm"] > 0 for row in rows)
    assert all(row["ratio/max"] == pytest.approx(1, abs=1e-3) for row in rows)
    assert before.keys() == after.keys() and all(value.isfinite().all() for value in after.values())


def test_rewards_never_come_from_the_test_split(tmp_path, tiny):
    make_policy(tiny).save(tmp_path / "p.safetensors")
    with pytest.raises(InputError, match="test split"):
        run_command("grpo", [*SMALL, "reward.split=test", f"policy_from={tmp_path}/p.safetensors", f"run_dir={tmp_path}/run"])


def test_a_setting_that_the_policy_recorded_may_be_said_again(tmp_path, capsys):
    policy = make_policy(build_task("digits-mlp", hidden=[8]))
    policy.record = {"task": "digits-mlp", "best_k": 1, "data": build_task("digits-mlp", held_back=300).data_key}
    policy.save(tmp_path / "p.safetensors")
    evaluate = ["evaluate", "--policy", str(tmp_path / "p.safetensors"), "--seeds", "2", "--steps", "1", "--split", "val"]
    assert main([*evaluate, "--set", "held_back=300", "hidden=[8]"]) == 0
    assert main([*evaluate, "--set", "held_back=299"]) == 2
    assert "held_back is 300 there and 299 here" in capsys.readouterr().err


def test_held_back_images_move_from_train_to_reward_and_policies_remember(tmp_path, tiny):
    task = build_task("digits-mlp", hidden=[8], held_back=300)
    assert [len(task.examples(split)[1]) for split in ("train", "reward", "val")] == [800, 400, 100]
    assert len(task.test_data()[1]) == len(tiny.test_data()[1])
    moved = torch.cat([task.examples("train")[1], task.examples("reward")[1]])
    assert torch.equal(moved, tiny.examples("train+reward")[1])
    with pytest.raises(InputError, match="held_back"):
        build_task("digits-mlp", held_back=1100).examples("train")
    policy = make_policy(tiny)
    policy.record["data"] = tiny.data_key
    policy.save(tmp_path / "p.safetensors")
    with pytest.raises(InputError, match="held_back is None there and 300 here"):
        run_command("grpo", [*SMALL, "task.held_back=300", f"policy_from={tmp_path}/p.safetensors", f"run_dir={tmp_path}/run"])


# --- critic --------------------------------------------------------------------------------------------------------


def test_the_smallest_k_near_the_best_is_chosen():
    quality = torch.tensor([[0.1, 0.8, 0.8015, 0.9, 0.9], [0.9, 0.9, 0.2, 0.1, 0.0], [0.5, 0.799, 0.7, 0.8, 0.7]])
    assert best_k(lag(quality)).tolist() == [3, 0, 1]
    assert lag(quality)[0].tolist() == pytest.approx([1, 1, 1, 0, 0])
    assert lag(quality)[2, 1].item() == pytest.approx(0.02, abs=1e-5)


class Scripted(torch.nn.Module):
    """A critic that says the same of every net."""

    def __init__(self, lags):
        super().__init__()
        self.lags = torch.tensor(lags)

    def forward(self, features):
        return self.lags.expand(len(features), -1)


@pytest.mark.parametrize(("lags", "taken"), [([0.0, 0.1, 0.2, 0.3, 1.0], 0), ([1.0, 0.8, 0.5, 0.3, 0.0], 4)])
def test_the_critic_decides_how_many_steps_each_net_gets(tiny, lags, taken):
    policy, start = make_policy(tiny).with_critic(8, 0), tiny.draw_start("val", [0, 1, 2])
    policy.critic = Scripted(lags)
    for plan in ("auto", "one"):
        finals, counts = option(ways, plan, "steps").synthesize(policy, start, tiny.network)
        assert counts.tolist() == [taken] * 3
        assert torch.allclose(finals, start, atol=1e-6) is (taken == 0)


def test_a_fresh_critic_changes_nothing_and_prospects_are_measured(tiny):
    policy = make_policy(tiny)
    judged, start = policy.with_critic(8, 0), tiny.draw_start("val", [0, 1, 2])
    assert torch.equal(judged(start, 1, tiny.network).mean, policy(start, 1, tiny.network).mean)
    assert isinstance(judged.critic, Critic) and judged.judge(start, tiny.network).shape == (3, policy.config.k_max + 1)
    images, labels = tiny.examples("val")
    wanted = prospects(judged, start, tiny.network, images, labels)
    assert wanted.shape == (3, policy.config.k_max + 1)
    with pytest.raises(InputError, match="no early-stop critic"):
        policy.judge(start, tiny.network)


def test_the_critic_stage_learns_to_foresee_and_synthesis_asks_it(tmp_path, tiny):
    make_policy(tiny).save(tmp_path / "p.safetensors")
    settings = ["task.hidden=[8]", "threads=1", "critic.nets=8", "critic.images=64", "critic.val_seeds=4", "critic.hidden=16"]
    loop = [
        "critic.loop.updates=60",
        "critic.loop.validate_every=60",
        "critic.optim.learning_rate=3e-3",
        "critic.optim.ema=0.5",
    ]
    made = run_command("critic", [*settings, *loop, f"policy_from={tmp_path}/p.safetensors", f"run_dir={tmp_path}/run"])
    losses = [row["loss"] for row in _rows(tmp_path / "run") if "loss" in row]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    policy, before = read_policy(made), read_policy(tmp_path / "p.safetensors")
    trunk = before.state_dict()
    assert all(torch.equal(value, trunk[name]) for name, value in policy.state_dict().items() if name in trunk)
    assert main(["init", "--task", "digits-mlp", "--set", "hidden=[8]", "-o", str(tmp_path / "w.safetensors")]) == 0
    state = synthesize(tmp_path / "w.safetensors", made, steps="auto")
    assert 0 <= json.loads(state.metadata["synthnet.provenance"])["steps"] <= policy.config.k_max
    for steps, reason in (("auto", "critic"), ("many", "whole number")):
        with pytest.raises(InputError, match=reason):
            synthesize(tmp_path / "w.safetensors", tmp_path / "p.safetensors", steps=steps)
    with pytest.raises(InputError, match="one of the two"):
        synthesize(tmp_path / "w.safetensors", made, steps="auto", sample=1)


# --- calibration ---------------------------------------------------------------------------------------------------


def test_calibration_takes_the_largest_sigma_it_accepts():
    rows = [
        Measured(s, 0.9, d, 0.01, snr, 0.1, 5.0, d < 0.01 and snr >= 9)
        for s, d, snr in ((0.1, 0, 4), (0.2, 0, 18), (0.4, 1, 90))
    ]
    assert recommended(rows, RewardConfig(batch=500), 1300) == {"grpo.sigma": 0.2, "reward.batch": 250}
    assert recommended(rows[:1], RewardConfig(batch=500), 1000) == {"grpo.sigma": 0.1, "reward.batch": 1000}
    with pytest.raises(InputError, match="more than noise"):
        recommended([Measured(0.1, 0.9, 0, 0.01, -1.0, 0.0, None, False)], RewardConfig(), 1300)


def test_calibration_by_example_takes_what_agrees_with_itself_most():
    rows = [
        Measured(sigma, 0.9, drop, 0.01, None, cosine, 5.0, drop < 0.01, uses)
        for sigma, drop, cosine, uses in ((0.1, 0, 0.2, "node"), (0.2, 0, 0.3, "tied"), (0.4, 1, 0.9, "tied"))
    ]
    assert recommended(rows, RewardConfig(), 1000) == {"grpo.sigma": 0.2, "grpo.uses": "tied"}
    with pytest.raises(InputError, match="agree at all"):
        recommended([Measured(0.1, 0.9, 0, 0.01, None, -0.1, None, True, "auto")], RewardConfig(), 1000)


@pytest.mark.parametrize("rollout", ["net", "example"])
def test_calibrate_prints_settings_that_the_stage_takes(tmp_path, tiny, capsys, rollout):
    make_policy(tiny).save(tmp_path / "p.safetensors")
    calibrate([*SMALL, f"grpo.rollout={rollout}", f"policy_from={tmp_path}/p.safetensors"])
    said = capsys.readouterr().out
    assert "half-batch cosine" in said
    line = said.splitlines()[-1]
    run_command("grpo", [*SMALL, *line.split(), f"policy_from={tmp_path}/p.safetensors", f"run_dir={tmp_path}/run"])
