"""Sweeps and executors: nothing lost, nothing repeated, failures kept apart; and `synthnet run`."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import make_policy, wait_for
from synthnet.cli import main
from synthnet.errors import InputError
from synthnet.lab.space import Axis, parse_space
from synthnet.runs.executors import build_executor
from synthnet.runs.journal import records
from synthnet.runs.status import read_status

pytestmark = pytest.mark.filterwarnings("ignore:outputs of different seeds", "ignore::ResourceWarning")
QUICK = [
    "task=digits-mlp", "task.hidden=[8]", "stages=[grpo]", "grpo.prompts=2", "grpo.num_generations=4", "grpo.steps=[1]",
    "reward.batch=32", "grpo.val_seeds=2", "grpo.signal_every=0", "grpo.loop.updates=2", "grpo.loop.validate_every=1",
    "lab.tensorboard=false",
]  # fmt: skip


@pytest.fixture
def settings(tmp_path, tiny):
    make_policy(tiny).save(tmp_path / "p.safetensors")
    return [*QUICK, f"policy_from={tmp_path / 'p.safetensors'}"]


def _results(folder):
    return json.loads((folder / "results.json").read_text())["trials"]


def test_the_space_is_written_in_hydras_grammar():
    space, fixed = parse_space(
        ["grpo.epsilon=0.1,0.2", "backbone=choice(perceiver_io,set_transformer)", "grpo.beta=interval(0.0,0.1)",
         "seed=range(1,7,2)",
         "grpo.optim.learning_rate=tag(log,interval(1e-5,1e-3))", "grpo.steps=[1,2]", "grpo.mirrored=true,false"]
    )  # fmt: skip
    assert fixed == {"grpo.steps": [1, 2]}
    assert space == {
        "grpo.epsilon": Axis((0.1, 0.2)),
        "backbone": Axis(("perceiver_io", "set_transformer")),
        "grpo.beta": Axis((), 0.0, 0.1),
        "seed": Axis((1, 3, 5)),
        "grpo.optim.learning_rate": Axis((), 1e-5, 1e-3, log=True),
        "grpo.mirrored": Axis((True, False)),
    }
    for wrong in ("choice(1", "interval(0.5,0.1)", "tag(log,interval(0,1))", "range(1,2,0)", "glob(*)"):
        with pytest.raises(InputError, match=r"expected KEY=VALUE|an interval runs|no values"):
            parse_space([f"grpo.epsilon={wrong}"])


@pytest.mark.slow
def test_a_grid_runs_every_combination_once_and_keeps_failures_apart(settings, tmp_path, capsys):
    """Inline. A group of 5 cannot be mirrored: its trials fail with the reason, the others are ranked."""
    folder = tmp_path / "sweep"
    sweep = [
        "sweep",
        *settings,
        "grpo.num_generations=4,5",
        "grpo.epsilon=0.1,0.3",
        "sweep.executor=inline",
        f"run_dir={folder}",
    ]
    assert main(sweep) == 0
    trials = _results(folder)
    assert sorted((t["settings"]["grpo.num_generations"], t["settings"]["grpo.epsilon"]) for t in trials) == [
        (4, 0.1), (4, 0.3), (5, 0.1), (5, 0.3)
    ]  # fmt: skip
    assert [t["state"] for t in trials] == ["complete", "complete", "fail", "fail"]
    assert all("must be even" in t["error"] for t in trials[2:])
    assert trials[0]["score"] >= trials[1]["score"]
    assert (folder / "sweep.png").stat().st_size > 10_000
    capsys.readouterr()
    done = {path: path.stat().st_mtime_ns for path in folder.glob("trial-000[0-3]/grpo/metrics.jsonl")}
    assert main(sweep) == 0  # again: only what failed is tried once more
    assert [t["trial"] for t in _results(folder)] == [*(t["trial"] for t in trials[:2]), 4, 5]
    assert {path: path.stat().st_mtime_ns for path in done} == done


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "several values"),
        (["grpo.epsilon=interval(0.1,0.2)"], "random or tpe"),
        (["grpo.epsilon=0.1,0.2", "sweep.sampler=magic"], "sweep.sampler must be one of"),
        (["grpo.epsilon=0.1,0.2", "sweep.workers=64"], "this machine has"),
        (["grpo.epsilonn=0.1,0.2"], "did you mean"),
        (["grpo.epsilon=0.1,0.2", "sweep.metric=nope"], "sweep.metric is a figure of validations"),
        (["grpo.epsilon=0.1,0.2", "stages=[dance]"], "stages must list"),
    ],
)
def test_bad_sweeps_are_refused(settings, tmp_path, capsys, more, message):
    base = [part for part in settings if not any(part.partition("=")[0] == extra.partition("=")[0] for extra in more)]
    assert main(["sweep", *base, *more, f"run_dir={tmp_path / 's'}"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_loses_or_repeats_nothing(settings, tmp_path):
    """Twelve trials, two processes, kill -9 half way; trials that outlive the sweep are waited for, not run twice."""
    folder = tmp_path / "sweep"
    command = [sys.executable, "-m", "synthnet.cli", "sweep", *settings, "grpo.epsilon=0.1,0.2,0.3,0.4,0.5,0.6", "seed=0,1"]
    command += ["sweep.workers=2", f"run_dir={folder}"]
    first = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    wait_for(lambda: len(list(folder.glob("trial-*/grpo/policy.safetensors"))) >= 4, first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=250)
    assert done.returncode == 0, done.stderr
    trials = _results(folder)
    assert len(trials) == 12
    assert {(t["settings"]["grpo.epsilon"], t["settings"]["seed"]) for t in trials} == {
        (epsilon / 10, seed) for epsilon in range(1, 7) for seed in (0, 1)
    }
    assert {t["state"] for t in trials} == {"complete"}
    for number in range(12):  # whole, and made once: one row for each update
        run = folder / f"trial-{number:04d}" / "grpo"
        assert read_status(run).state == "done"
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [row["update"] for row in rows if "loss" in row] == [1, 2]


@pytest.mark.slow
def test_tpe_proposes_and_hyperband_ends_what_lags(settings, tmp_path):
    folder = tmp_path / "sweep"
    more = [part for part in settings if not part.startswith("grpo.loop.updates")]
    sweep = [*more, "grpo.loop.updates=6", "grpo.optim.learning_rate=tag(log,interval(1e-5,1e-2))", "sweep.sampler=tpe"]
    assert main(["sweep", *sweep, "sweep.trials=4", "sweep.prune=true", f"run_dir={folder}"]) == 0
    trials = _results(folder)
    assert len({t["settings"]["grpo.optim.learning_rate"] for t in trials}) == 4
    lengths = {"complete": [], "pruned": []}
    for trial in trials:  # best first
        rows = records(folder / f"trial-{trial['trial']:04d}" / "grpo" / "metrics.jsonl")
        lengths[trial["state"]].append(sum("loss" in row for row in rows))
    assert set(lengths["complete"]) == {6} and all(length <= 6 for length in lengths["pruned"]), lengths
    assert max(trials, key=lambda trial: trial["score"])["state"] == "complete", "the best one was ended"
    assert all(1e-5 <= t["settings"]["grpo.optim.learning_rate"] <= 1e-2 for t in trials)


def _finish(executor, command, folder):
    handle = executor.submit(command, folder / "log.txt")
    wait_for(lambda: handle.poll() is not None)
    return handle.poll()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inline", "processes", "ray", "slurm"])
def test_executors_run_commands_and_tell_how_they_ended(name, tmp_path, monkeypatch):
    """Ray on a real local cluster; Slurm's submitit on its own local executor, as where there is no Slurm."""
    package = {"ray": "ray", "slurm": "submitit"}.get(name)
    if package:
        pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    executor = build_executor(name, 1, 1)
    try:
        made = tmp_path / "init.safetensors"
        assert _finish(executor, ["init", "--seed", "3", "-o", str(made)], tmp_path) == 0
        assert made.exists()
        assert _finish(executor, ["init", "--count", "0", "-o", str(made)], tmp_path) == 2
        assert "--count must be at least 1" in (tmp_path / "log.txt").read_text()
    finally:
        executor.close()


@pytest.mark.slow
def test_run_does_the_stages_of_a_configuration_and_goes_on_where_it_was(tmp_path, capsys):
    folder = tmp_path / "run"
    small = [
        "task.hidden=[8]", "threads=1", "zoo.runs=6", "zoo.heldout=2", "zoo.shard=6", "backbone.dim=16", "backbone.depth=1",
        "backbone.heads=2", "pairs.loop.updates=2", "pairs.val_seeds=2", "grpo.loop.updates=2", "grpo.prompts=2",
        "grpo.num_generations=4", "grpo.val_seeds=2", "reward.batch=32", "lab.tensorboard=false",
    ]  # fmt: skip
    assert main(["run", *small, f"run_dir={folder}"]) == 0
    assert Path(capsys.readouterr().out.strip()) == folder / "grpo" / "policy.safetensors"
    command = json.loads((folder / "grpo" / "run.json").read_text())["command"]
    assert f"policy_from={folder / 'pairs' / 'policy.safetensors'}" in command
    assert f"zoo_dir={folder / 'zoo'}" in command
    before = (folder / "pairs" / "metrics.jsonl").stat().st_mtime_ns
    (folder / "grpo" / "policy.safetensors").unlink()
    assert main(["run", *small, f"run_dir={folder}"]) == 0
    assert (folder / "pairs" / "metrics.jsonl").stat().st_mtime_ns == before
    assert read_status(folder).state == "done"


@pytest.mark.slow
def test_a_sweep_on_a_local_ray_cluster_is_the_same_sweep(settings, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = {}
    for executor in ("inline", "ray"):
        folder = tmp_path / executor
        assert (
            main(["sweep", *settings, "grpo.epsilon=0.1,0.3", "seed=0,1", f"sweep.executor={executor}", f"run_dir={folder}"])
            == 0
        )
        found[executor] = {(t["settings"]["grpo.epsilon"], t["settings"]["seed"]): t["score"] for t in _results(folder)}
    assert len(found["ray"]) == 4
    assert found["ray"] == found["inline"]


def test_a_slip_in_one_value_of_a_sweep_shows_before_any_trial(settings, tmp_path, capsys):
    assert main(["sweep", *settings, "grpo.loss_type=dapo,banana", f"run_dir={tmp_path / 's'}"]) == 2
    assert "banana" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_a_metric_that_no_stage_has_ends_a_sweep_at_its_first_trial(settings, tmp_path, capsys):
    wrong = ["seed=1,2,3", "sweep.metric=accuracy_k7", "sweep.workers=1", "sweep.executor=inline", f"run_dir={tmp_path / 's'}"]
    assert main(["sweep", *settings, *wrong]) == 2
    assert "unknown sweep.metric 'accuracy_k7'" in capsys.readouterr().err
    assert len(list((tmp_path / "s").glob("trial-*"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["inline", "processes"])
def test_trials_run_code_that_the_sweeps_own_command_names(settings, tmp_path, capsys, executor):
    """A run directory never names code; the command that resumes it does."""
    (tmp_path / "mine.py").write_text(
        "def first(*, completions, **_):\n    return [float(i) for i in range(len(completions))]\n"
    )
    own = [f"reward.python=['{tmp_path}/mine.py:first']", "grpo.epsilon=0.1,0.2", f"sweep.executor={executor}", "threads=1"]
    assert main(["sweep", *settings, *own, f"run_dir={tmp_path / 's'}"]) == 0, capsys.readouterr().err
    assert [trial["state"] for trial in _results(tmp_path / "s")] == ["complete", "complete"]
    assert main(["runs", "resume", str(tmp_path / "s" / "trial-0000")]) == 2
    assert "uses code of yours" in capsys.readouterr().err
    assert main(["runs", "resume", str(tmp_path / "s" / "trial-0000"), "--code", f"{tmp_path}/mine.py:first"]) == 0
