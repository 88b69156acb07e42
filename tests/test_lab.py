"""The lab: live patching, rollback, guards, resumption and replay bit for bit, forks, runs as things."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
from functools import partial

import pytest
from safetensors.torch import load_file

from conftest import make_policy, wait_for
from synthnet.cli import main
from synthnet.errors import InputError
from synthnet.grpo.experience import Estimator
from synthnet.grpo.loop import train_grpo
from synthnet.grpo.objective import policy_loss
from synthnet.lab.fork import fork, run_command
from synthnet.policy.file import read_policy
from synthnet.runs.journal import append, records
from synthnet.runs.lab import LabConfig, Schedule
from synthnet.runs.live import Live
from synthnet.runs.status import list_runs, read_status
from synthnet.train import loop as training
from synthnet.train.pairs import PairsConfig, check_pairs

QUICK = [
    "task=digits-mlp", "task.hidden=[8]", "threads=1", "grpo.prompts=2", "grpo.num_generations=4", "grpo.steps=[1]",
    "reward.batch=32", "grpo.val_seeds=2", "grpo.signal_every=0", "grpo.loop.validate_every=5", "grpo.loop.checkpoint_every=5",
    "lab.tensorboard=false", "grpo.guard.norm=null",
]  # fmt: skip


def _rows(folder):
    """metrics.jsonl without times."""
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in records(folder / "metrics.jsonl")]


@pytest.fixture
def start(tmp_path, tiny):
    make_policy(tiny).save(tmp_path / "p.safetensors")
    return tmp_path / "p.safetensors"


def _settings(start, folder, *more):
    return [*QUICK, f"policy_from={start}", f"run_dir={folder}", *more]


def _spawn(arguments):
    command = [sys.executable, "-m", "synthnet.cli", "grpo", *arguments]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, stdout=subprocess.PIPE)


# --- a live run --------------------------------------------------------------------------------------------------------


def _requests(folder, *requests):
    folder.mkdir(parents=True, exist_ok=True)
    for request in requests:
        append(folder / "patches.jsonl", request)


def test_requests_act_at_update_boundaries_with_versions_and_reasons(start, tmp_path):
    run = tmp_path / "run"
    _requests(
        run,
        {"kind": "patch", "values": {"reward.gain": 0.4, "grpo.optim.learning_rate": 5e-5}, "over": 4},
        {"kind": "patch", "values": {"grpo.epsilon": -1}},
        {
            "kind": "patch",
            "values": {"grpo.num_generations": 5},
        },  # mirrored pairs: not alone out of bounds, but it does not fit
        {"kind": "dance"},
        {"kind": "patch", "values": {"reward.gain": 0.1}},
        {"kind": "rollback", "to": 1},
        {"kind": "rollback", "to": 7},
    )
    with pytest.warns(UserWarning, match="refused"):
        run_command("grpo", _settings(start, run, "grpo.loop.updates=6"))
    applied = records(run / "applied.jsonl")
    assert [(e["kind"], e.get("version"), e["request"]) for e in applied] == [
        ("patch", 1, 1), ("refused", None, 2), ("refused", None, 3), ("refused", None, 4), ("patch", 2, 5), ("rollback", 3, 6),
        ("refused", None, 7),
    ]  # fmt: skip
    assert "must be even" in applied[2]["reason"]
    updates = [row for row in _rows(run) if "loss" in row]
    assert {row["patch_version"] for row in updates} == {3}
    assert updates[0]["knob/grpo.optim.learning_rate"] == 5e-5  # where version 1 was going
    assert updates[0]["knob/reward.gain"] == pytest.approx(0.4)


def test_a_patch_that_breaks_the_run_is_taken_back_by_its_guard(start, tmp_path):
    """The guard names the version it undoes, the knobs go back to what they were, and the learning rate is not halved."""
    run = tmp_path / "run"
    _requests(run, {"kind": "patch", "values": {"grpo.guard.kl": 1e-9}})
    with pytest.warns(UserWarning, match="rolled back by a guard"):
        run_command("grpo", _settings(start, run, "grpo.loop.updates=12", "grpo.loop.validate_every=4"))
    guard = next(entry for entry in records(run / "applied.jsonl") if entry["kind"] == "guard")
    assert guard["undone"] == [1]
    assert guard["released"] == ["grpo.guard.kl"]
    assert "kl" in guard["reason"]
    rates = {row["knob/grpo.guard.kl"] for row in _rows(run) if row["update"] > guard["update"] and "loss" in row}
    assert rates == {None}
    first, last = (next(row for row in _rows(run) if row["update"] == u and "loss" in row) for u in (11, 12))
    assert first["learning_rate"] > last["learning_rate"] > 0.15e-4


def test_three_gradients_in_a_row_that_are_not_finite_go_back_to_the_best(start, tmp_path, monkeypatch):
    def poisoned(*arguments, calls=[]):  # noqa: B006
        calls.append(1)
        loss, stats = policy_loss(*arguments)
        return (loss * math.nan if 3 <= len(calls) <= 5 else loss), stats

    monkeypatch.setattr("synthnet.stages.train_grpo", partial(train_grpo, estimator=Estimator(loss=poisoned)))
    with pytest.warns(UserWarning, match="not finite"):
        run_command("grpo", _settings(start, tmp_path / "run", "grpo.loop.updates=8", "grpo.rollout=net"))
    rows = [row for row in _rows(tmp_path / "run") if "loss" in row]
    assert [row["skipped"] for row in rows] == [0, 0, 1, 1, 1, 0, 0, 0]
    assert rows[2]["loss"] is None
    assert rows[5]["learning_rate"] < 0.6 * rows[1]["learning_rate"] / (2 / 10) * (6 / 10)


@pytest.mark.slow
def test_a_scripted_session_survives_kill_9_and_equals_its_replay(start, tmp_path, capsys):
    """Patches smoothed and refused on a live run, a collapse taken back, kill -9, resume; then the replay of it all."""
    run, arguments = tmp_path / "run", None
    arguments = _settings(start, run, "grpo.loop.updates=4000", "grpo.loop.checkpoint_every=40")
    process = _spawn(arguments)
    try:
        wait_for(lambda: (run / "metrics.jsonl").exists() and len(records(run / "metrics.jsonl")) > 10, process)
        assert read_status(run).state == "running"
        assert (
            main(["patch", str(run), "reward.gain=0.3", "grpo.optim.learning_rate=2e-4", "--over", "10", "--wait", "240"]) == 0
        )
        before = len(records(run / "applied.jsonl"))
        for wrong in (
            "grpo.epsilon=99",
            "grpo.epsilon=nan",
            "grpo.nothing=1",
            "grpo.epsilon=big",
            "grpo.val_seeds=4",
            "grpo.prompts",
        ):
            assert main(["patch", str(run), wrong]) == 2
        said = capsys.readouterr().err
        assert "must lie in" in said
        assert "of type float" in said
        assert f"synthnet fork {run} grpo.val_seeds" in said
        assert (
            main(["patch", str(run), "grpo.num_generations=3", "--wait", "240"]) == 2
        )  # the run itself refuses what does not fit
        assert len(records(run / "applied.jsonl")) == before + 1
        assert main(["patch", str(run), "grpo.guard.kl=1e-9", "--wait", "240"]) == 0
        wait_for(lambda: any(entry["kind"] == "guard" for entry in records(run / "applied.jsonl")), process)
        guard_at = next(entry["update"] for entry in records(run / "applied.jsonl") if entry["kind"] == "guard")
        wait_for(lambda: read_status(run).update > guard_at + 55, process)
    finally:
        process.kill()
        process.communicate()
    died_at = read_status(run).update
    assert read_status(run).state == "dead"
    patched = [row for row in _rows(run) if "knob/reward.gain" in row]
    smooth = [row["knob/reward.gain"] for row in patched[:10]]
    assert smooth == pytest.approx([0.03 * (n + 1) for n in range(10)])
    assert {row["patch_version"] for row in patched} == {1, 2, 3}

    process = _spawn(arguments)
    wait_for(lambda: read_status(run).state == "running" and read_status(run).update > died_at + 5, process)
    assert main(["runs", "stop", str(run)]) == 0
    assert process.wait(240) == 130
    process.communicate()
    stopped_at = read_status(run).update
    assert read_status(run).state == "stopped"

    replay = tmp_path / "replay"
    replay.mkdir()
    kept = [entry for entry in records(run / "applied.jsonl") if entry["kind"] != "stop"]
    (replay / "applied.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in kept))
    process = _spawn([*arguments, f"run_dir={replay}"])
    wait_for(lambda: (replay / "metrics.jsonl").exists() and read_status(replay).update > stopped_at, process)
    process.send_signal(signal.SIGINT)
    process.wait(240)
    process.communicate()
    whole = [row for row in _rows(replay) if row["update"] <= stopped_at]
    assert _rows(run) == whole[: len(_rows(run))]
    assert len(whole) - len(_rows(run)) <= 1  # the validation after its last update


# --- runs as things ----------------------------------------------------------------------------------------------------


def test_forks_reuse_what_fits(start, tmp_path):
    run = tmp_path / "run"
    run_command("grpo", _settings(start, run, "grpo.loop.updates=1", f"k_max={read_policy(start).config.k_max}"))
    stage, made = fork(run, {"grpo.prompts": 3}, None)
    assert "k_max" not in made, "the old run's policy brings it along"
    assert stage == "grpo"
    wanted = {"grpo.prompts": 3, "policy_from": str(run / "policy.safetensors"), "run_dir": str(tmp_path / "run-2")}
    assert {name: made[name] for name in wanted} == wanted
    _, built = fork(run, {"backbone.depth": 2}, str(tmp_path / "other"))
    assert built["policy_from"] == str(start)  # another trunk: the old one's policy does not fit
    assert main(["fork", str(run), "grpo.loop.updates=2", "-o", str(tmp_path / "fork")]) == 0
    assert read_status(tmp_path / "fork").state == "done"


def test_runs_are_listed_shown_compared_and_pruned(start, tmp_path, capsys, monkeypatch):
    root = tmp_path / "runs"
    for name, prompts in (("a", 2), ("b", 4)):
        run_command("grpo", _settings(start, root / name, "grpo.loop.updates=1", f"grpo.prompts={prompts}"))
    capsys.readouterr()
    assert main(["runs", "--runs", str(root), "--json"]) == 0
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {name: row["state"] for name, row in listed.items()} == {"a": "done", "b": "done"}
    assert main(["runs", "compare", str(root / "a"), str(root / "b")]) == 0
    said = capsys.readouterr().out
    assert "grpo.prompts" in said and "grpo.num_generations" not in said
    assert main(["runs", "show", str(root / "a")]) == 0
    assert "grpo.prompts=2" in capsys.readouterr().out
    record = json.loads((root / "a" / "run.json").read_text())
    (root / "a" / "policy.safetensors").unlink()
    (root / "a" / "run.json").write_text(json.dumps({**record, "outcome": None}))  # as kill -9 leaves it
    assert {status.name: status.state for status in list_runs(root)} == {"a": "dead", "b": "done"}
    assert main(["runs", "prune", "--runs", str(root)]) == 2  # no terminal, no --yes: nothing is deleted
    assert (root / "a").exists()
    assert main(["runs", "prune", "--runs", str(root), "--yes"]) == 0
    assert not (root / "a").exists() and (root / "b").exists()
    for wrong in (
        ["runs", "show"],
        ["runs", "show", str(tmp_path)],
        ["runs", "stop", str(root / "b")],
        ["patch", str(root / "b"), "grpo.beta=0.1"],
    ):
        assert main(wrong) == 2


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(start, tmp_path):
    run = tmp_path / "run"
    arguments = _settings(start, run, "grpo.loop.updates=12")
    run_command("grpo", arguments)
    whole = _rows(run)
    latest = run / "checkpoints" / "training.safetensors"
    data = bytearray(latest.read_bytes())
    data[-1] ^= 1  # one bit
    latest.write_bytes(data)
    with pytest.warns(UserWarning, match="is damaged .its checksum"):
        run_command("grpo", arguments)
    assert _rows(run) == whole
    for path in (run / "checkpoints").glob("training*"):
        path.write_bytes(b"no checkpoint")
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(InputError, match="no whole checkpoint"):
        run_command("grpo", arguments)


def test_lab_settings_reach_the_run(start, tmp_path):
    lab = LabConfig({"grpo.beta": Schedule("linear", 0.0, 0.02, over=2)})
    assert lab.tensorboard is None
    schedule = "lab.schedules={grpo.beta:{shape:linear,start:0.0,end:0.02,over:2}}"
    run_command("grpo", _settings(start, tmp_path / "run", "grpo.loop.updates=3", schedule))
    assert [row["knob/grpo.beta"] for row in _rows(tmp_path / "run") if "loss" in row] == pytest.approx([0.0, 0.01, 0.02])


# --- found by review ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:outputs of different seeds", "ignore:half-batch gradients")
def test_pruning_spares_what_lives_inside_a_dead_sweep(start, tmp_path):
    """A trial outlives its sweep by design: neither it nor the folder that holds it may go."""
    root = tmp_path / "runs"
    run_command("grpo", _settings(start, root / "sweep" / "trial-0000", "grpo.loop.updates=1"))
    for name in ("run.json", "config.yaml"):
        (root / "sweep" / name).write_text((root / "sweep" / "trial-0000" / name).read_text())
    record = json.loads((root / "sweep" / "run.json").read_text())
    (root / "sweep" / "run.json").write_text(json.dumps({**record, "outcome": None}))
    assert {s.name: s.state for s in list_runs(root)} == {"sweep": "dead", "sweep/trial-0000": "done"}
    assert main(["runs", "prune", "--runs", str(root), "--yes"]) == 0
    assert (root / "sweep" / "trial-0000").exists()


def test_one_damaged_run_hides_no_other(start, tmp_path):
    root = tmp_path / "runs"
    for name in ("a", "b"):
        run_command("grpo", _settings(start, root / name, "grpo.loop.updates=1"))
    (root / "a" / "run.json").write_text("{" * 5000)
    assert {status.name: status.state for status in list_runs(root)} == {"a": "foreign", "b": "done"}


def test_a_rolled_back_sigma_is_the_policys_own_again(start, tmp_path):
    """The noise is set at every update from the knob, so going back to null gives back what the policy came with."""
    run = tmp_path / "run"
    _requests(run, {"kind": "patch", "values": {"grpo.sigma": 0.3}})
    run_command("grpo", _settings(start, run, "grpo.loop.updates=2"))
    assert read_policy(run / "policy.safetensors").record["stages"]
    learner = load_file(run / "checkpoints" / "training.safetensors")
    assert learner["policy/log_sigma"].exp() == pytest.approx(0.3)
    back = tmp_path / "back"
    _requests(back, {"kind": "patch", "values": {"grpo.sigma": 0.3}}, {"kind": "rollback", "to": 0})
    run_command("grpo", _settings(start, back, "grpo.loop.updates=2"))
    learner = load_file(back / "checkpoints" / "training.safetensors")
    assert learner["policy/log_sigma"].exp() == pytest.approx(0.05)


def test_a_patched_limit_holds_when_a_run_is_taken_up_again(start, tmp_path, monkeypatch):
    """patience=1 would end the run at its second validation; patched to 0 it goes on, also where it was killed there."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    patient = ["grpo.loop.updates=12", "grpo.loop.validate_every=2", "grpo.loop.checkpoint_every=1", "grpo.loop.patience=2"]
    for folder in (whole, killed):
        _requests(folder, {"kind": "patch", "values": {"grpo.loop.patience": 0}})
    run_command("grpo", _settings(start, whole, *patient))
    apply, calls = training.Run._begin, []

    def die(*arguments):
        calls.append(1)
        if len(calls) == 9:
            raise SystemExit
        return apply(*arguments)

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(training.Run, "_begin", die)
        run_command("grpo", _settings(start, killed, *patient))
    run_command("grpo", _settings(start, killed, *patient))
    assert _rows(killed) == _rows(whole)
    assert max(row["update"] for row in _rows(whole)) == 12


def test_values_must_go_together_with_where_the_others_are_going(start, tmp_path):
    """Each of the two patches is sound with what holds now; together they would leave nothing to draw."""
    run = tmp_path / "run"
    live = Live({"pairs": (config := PairsConfig())}, {}, lambda: check_pairs(config))
    run.mkdir()
    live.open(run, type("P", (), {"settings": {}})())
    _requests(run, {"kind": "patch", "values": {"pairs.single": 0.0}, "over": 5})
    _requests(run, {"kind": "patch", "values": dict.fromkeys(("pairs.short", "pairs.long", "pairs.skipped"), 0.0)})
    with pytest.warns(UserWarning, match="not all be zero"):
        live.turn(0, ())
    assert [entry["kind"] for entry in records(run / "applied.jsonl")] == ["patch", "refused"]


def test_no_run_that_names_code_is_run_again_from_its_file(start, tmp_path):
    run = tmp_path / "run"
    run_command("grpo", _settings(start, run, "grpo.loop.updates=1"))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "given": {**record["given"], "reward.python": ["evil.py:f"]}}))
    for wrong in (["runs", "resume", str(run)], ["fork", str(run), "seed=1"], ["fork", str(run), "--replay"]):
        assert main(wrong) == 2
    (run / "run.json").write_text(json.dumps(record))
    text = (run / "config.yaml").read_text()
    assert "  python: []\n" in text
    for name in ("python", "examples"):
        (run / "config.yaml").write_text(text.replace(f"  {name}: []\n", f"  {name}: [evil.py:f]\n"))
        assert main(["runs", "resume", str(run)]) == 2
    assert not (tmp_path / "run-2").exists()


def test_requests_that_come_at_once_are_numbered_one_by_one(tmp_path):
    numbers = []
    threads = [threading.Thread(target=lambda: numbers.append(append(tmp_path / "j", {"a": 1}, sync=True))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 13))


def test_schedules_of_other_stages_are_left_to_them(start, tmp_path, capsys):
    schedule = "lab.schedules={pairs.function:{start:1.0,end:0.0}}"
    run_command("grpo", _settings(start, tmp_path / "run", "grpo.loop.updates=1", schedule))
    assert not any("knob/" in name for row in _rows(tmp_path / "run") for name in row)
    with pytest.raises(InputError, match=r"did you mean 'grpo\.beta'"):
        run_command("grpo", _settings(start, tmp_path / "x", "lab.schedules={grpo.betta:{start:1.0,end:0.0}}"))
