"""Sweeps: Optuna proposes settings, an executor runs them, each trial is a run directory of its own.

A sweep folder holds journal.jsonl (Optuna's journal: what was proposed, what came of it), trial-0000/ … (each what `synthnet
run` makes) and results.json. All that a trial is lies in its folder and in the journal, so a killed sweep that is started again
waits for the trials that outlived it, gives the others again, and loses or repeats none.
"""

import itertools
import json
import math
import re
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from synthnet.errors import InputError, missing_extra, unknown
from synthnet.files import write_atomic
from synthnet.lab.fork import code_of, lay_out
from synthnet.lab.space import Axis
from synthnet.lab.table import validations
from synthnet.progress import Bar, StopRequest
from synthnet.runs import RunDirectory, Setup, SweepConfig, is_run, read_status, records
from synthnet.runs.executors import Executor, Handle, build_executor
from synthnet.settings import check_settings

POLL_S = 0.2
INTERRUPTED = 130
AGAIN = "again"  # of a trial that repeats one which failed: that one's number
METRICS = r"score|reward|drift/(kl|norm)|(accuracy|loss)_k\d+(/.+)?|aligned_ratio_k\d+"
RUNG = 4  # validations before Hyperband may end a trial


@dataclass
class Sweep:
    """A sweep under way."""

    folder: Path
    config: SweepConfig
    space: dict[str, Axis]
    fixed: dict[str, object]
    last_stage: str
    study: object
    executor: Executor
    active: dict[int, "Active"] = field(default_factory=dict)

    @property
    def total(self) -> int:
        if self.config.sampler == "grid":
            return math.prod(len(axis.choices) for axis in self.space.values())
        return self.config.trials


@dataclass
class Active:
    """A trial under way. `handle` is None for one that outlived an earlier sweep process."""

    trial: object
    folder: Path
    handle: Handle | None
    reported: int = 0


def run_sweep(setup: Setup, config: SweepConfig, space: dict[str, Axis], fixed: dict[str, object], last_stage: str) -> dict:
    """Run all trials, or what is left of them; returns and writes the results. Ctrl-C leaves running trials to finish by
    themselves; the same command goes on.

    Raises: InputError for settings that no sweep can run with, and where optuna is missing.
    """
    check_settings("sweep", config)
    if not re.fullmatch(METRICS, config.metric):
        raise InputError(
            f"sweep.metric is a figure of validations, as score or accuracy_k2 (docs/logged.md), got {config.metric!r}"
        )
    fixed = {name: value for name, value in fixed.items() if name != "run_dir" and not name.startswith("sweep.")}
    if not space:
        raise InputError("a sweep needs a setting with several values, as in grpo.epsilon=0.1,0.2")
    if config.sampler == "grid" and (wide := [name for name, axis in space.items() if not axis.choices]):
        raise InputError(f"sweep.sampler=grid needs lists of values; {wide[0]} is an interval (use random or tpe)")
    with RunDirectory(setup) as run, StopRequest() as stop:
        study = _study(run.path, config, space)
        executor = build_executor(config.executor, config.workers, config.threads)
        sweep = Sweep(run.path, config, space, fixed, last_stage, study, executor)
        try:
            _work(sweep, stop)
        except InputError:  # it holds for every trial: none needs to go on
            for active in sweep.active.values():
                if active.handle is not None:
                    active.handle.stop()
            raise
        finally:
            executor.close()
        results = summary(sweep)
        write_atomic(run.path / "results.json", json.dumps(results, indent=1) + "\n")
        return results


def _study(folder: Path, config: SweepConfig, space: dict[str, Axis]):
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise missing_extra("optuna", "sweep") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kind = optuna.samplers.TPESampler if config.sampler == "tpe" else optuna.samplers.RandomSampler
    pruner = optuna.pruners.HyperbandPruner(min_resource=RUNG) if config.prune else optuna.pruners.NopPruner()
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.jsonl")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optuna's notes on what it calls experimental
        study = optuna.create_study(
            storage=storage,
            study_name="sweep",
            load_if_exists=True,
            direction="maximize",
            sampler=kind(seed=config.seed),
            pruner=pruner,
        )
        study.sampler = kind(seed=config.seed + len(study.get_trials(deepcopy=False)))  # resumed: not the same draws again
        _again(study)
        if config.sampler == "grid":  # all of it queued at once: Optuna's own grid sampler ends studies that are asked and told
            for values in itertools.product(*(axis.choices for axis in space.values())):
                named = {name: json.dumps(value) for name, value in zip(space, values, strict=True)}
                study.enqueue_trial(named, skip_if_exists=True)
        return study


def _again(study) -> None:
    """Queue what failed once more, in a folder of its own: what it failed by may be mended."""
    from optuna.trial import TrialState

    for trial in _standing(study):
        if trial.state == TrialState.FAIL:
            study.enqueue_trial(trial.params, user_attrs={AGAIN: trial.number})


def _standing(study) -> list:
    """The trials that count: not those that were queued once more."""
    trials = study.get_trials(deepcopy=False)
    replaced = {trial.user_attrs.get(AGAIN) for trial in trials}
    return [trial for trial in trials if trial.number not in replaced]


def _work(sweep: Sweep, stop: StopRequest) -> None:
    from optuna.trial import TrialState

    left = [frozen for frozen in _standing(sweep.study) if frozen.state == TrialState.RUNNING]
    over = [frozen for frozen in _standing(sweep.study) if frozen.state.is_finished()]
    with Bar(f"sweep {sweep.folder.name}", sweep.total, len(over)) as bar:
        while not stop.asked:
            while left and len(sweep.active) < sweep.config.workers:
                _resume(sweep, left.pop(0))
            n_known = len([t for t in _standing(sweep.study) if t.state != TrialState.WAITING])
            if not left and len(sweep.active) < sweep.config.workers and n_known < sweep.total:
                _launch(sweep, sweep.study.ask())
                continue
            finished = [number for number, active in list(sweep.active.items()) if _settle(sweep, active)]
            for number in finished:
                del sweep.active[number]
            bar.advance(len(finished), note=_best_note(sweep))
            if not sweep.active and not left and n_known >= sweep.total:
                return
            if not finished:
                time.sleep(POLL_S)
    raise KeyboardInterrupt


def _resume(sweep: Sweep, frozen) -> None:
    """Take up a trial that an earlier process of this sweep did not see the end of."""
    from optuna.trial import Trial

    folder = sweep.folder / f"trial-{frozen.number:04d}"
    trial, reported = Trial(sweep.study, frozen._trial_id), len(frozen.intermediate_values)
    if is_run(folder) and read_status(folder).state in ("running", "stalled"):
        sweep.active[frozen.number] = Active(trial, folder, None, reported)
        return
    _launch(sweep, trial, reported)


def _launch(sweep: Sweep, trial, reported: int = 0) -> None:
    """Begin a trial; one whose settings no run can have is over, and hides no other."""
    params = {name: axis.suggest(trial, name) for name, axis in sweep.space.items()}
    folder = sweep.folder / f"trial-{trial.number:04d}"
    given = {**sweep.fixed, **params, "threads": sweep.config.threads, "run_dir": str(folder)}
    try:
        lay_out("run", given)
    except InputError as error:
        _fail(sweep, trial, str(error))
        return
    code = code_of(given)
    command = ["runs", "resume", str(folder), *(["--code", *code] if code else [])]
    sweep.active[trial.number] = Active(trial, folder, sweep.executor.submit(command, folder / "log.txt"), reported)


def _fail(sweep: Sweep, trial, reason: str) -> None:
    import optuna

    trial.set_user_attr("error", reason[:400])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sweep.study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _settle(sweep: Sweep, active: Active) -> bool:
    """Whether a trial is over, in which case the study is told how it ended. One that lags behind is ended."""
    from optuna.trial import TrialState

    values = scores(active.folder / sweep.last_stage, sweep.config.metric)
    for index in range(active.reported, len(values)):
        active.trial.report(values[index], index)
    active.reported = max(active.reported, len(values))
    code = _exit_code(active)
    if code is None:
        if sweep.config.prune and active.handle is not None and values and active.trial.should_prune():
            active.handle.stop()
            sweep.study.tell(active.trial, state=TrialState.PRUNED)
            return True
        return False
    if code == INTERRUPTED:
        raise KeyboardInterrupt  # not over: the same sweep goes on with it
    if code == 2 and is_run(active.folder) and read_status(active.folder).state in ("running", "stalled"):
        active.handle = None  # an earlier process of this trial lives: wait for it
        return False
    if code == 0 and values:
        sweep.study.tell(active.trial, max(values))
        return True
    _fail(sweep, active.trial, _error(active.folder, code))
    return True


def _exit_code(active: Active) -> int | None:
    if active.handle is not None:
        return active.handle.poll()
    state = read_status(active.folder).state
    return None if state in ("running", "stalled") else 0 if state == "done" else 1


def scores(folder: Path, metric: str) -> list[float]:
    """The validations of a stage so far, in order. Raises: InputError where it validates, and has no metric of that name."""
    rows = records(folder / "metrics.jsonl")
    known = {name.removeprefix("val/") for row in rows for name in row if name.startswith("val/")}
    if known and metric not in known:
        raise unknown("sweep.metric", metric, known)
    return validations(rows, metric)


def _error(folder: Path, code: int) -> str:
    log = folder / "log.txt"
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    said = [line for line in lines if line.startswith("synthnet: ")] or lines[-1:]
    return f"exit code {code}: {' '.join(said[-1:])}"[:400]


def _best_note(sweep: Sweep) -> str:
    values = [trial.value for trial in sweep.study.get_trials(deepcopy=False) if trial.value is not None]
    return f"best {max(values):.4f}" if values else ""


def summary(sweep: Sweep) -> dict:
    """Every trial, best first, failed and ended ones after the rest with their reason."""
    rows = []
    for trial in _standing(sweep.study):
        params = {name: json.loads(value) if isinstance(value, str) else value for name, value in trial.params.items()}
        seconds = (trial.datetime_complete - trial.datetime_start).total_seconds() if trial.datetime_complete else None
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                sweep.config.metric: trial.value,
                "settings": params,
                "error": trial.user_attrs.get("error"),
                "seconds_s": seconds,
            }
        )
    rows.sort(key=lambda row: (row[sweep.config.metric] is None, -(row[sweep.config.metric] or 0.0), row["trial"]))
    return {"metric": sweep.config.metric, "trials": rows}
