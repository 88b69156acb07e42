"""`synthnet runs`: list, show, stop, resume, compare and prune runs."""

import json
import shutil
import sys
import time
from pathlib import Path

from synthnet.console import table
from synthnet.errors import InputError
from synthnet.lab.requests import answer, request_stop
from synthnet.runs import APPLIED, RunStatus, by_full_name, is_locked, list_runs, read_settings, read_status, records

PRUNED = ("dead", "failed", "stopped", "done")
STOP_S = 60.0


def print_runs(options) -> None:
    """All runs of a folder, newest first."""
    found = list_runs(options.runs)
    if options.json:
        print(json.dumps([status.as_dict() for status in found]))
        return
    rows = [[s.name, s.stage or "?", s.state, _progress(s), _score(s), str(s.patch_version), _age(s.age_s)] for s in found]
    table(
        f"{len(found)} runs in {options.runs}", ["run", "stage", "state", "update", "val score", "patches", "last sign"], rows
    )


def show(options) -> None:
    """One run: its command, how far it is, its last validation, and what was applied to it."""
    folder = _one(options)
    status = read_status(folder)
    validations = [row for row in records(folder / "metrics.jsonl") if "val/score" in row]
    applied = records(folder / APPLIED)
    if options.json:
        print(json.dumps({**status.as_dict(), "validation": validations[-1:], "applied": applied}))
        return
    print(f"{' '.join(status.command)}\n{status.state}, update {_progress(status)} {status.note}")
    if validations:
        last = {name.removeprefix("val/"): value for name, value in validations[-1].items() if isinstance(value, float)}
        rows = [[name, f"{value:.4f}"] for name, value in last.items()]
        table(f"validation at update {validations[-1]['update']}", ["metric", "value"], rows)
    if applied:
        table("applied", ["version", "update", "what", "values or reason"], [_applied(entry) for entry in applied])


def _applied(entry: dict) -> list[str]:
    said = entry.get("reason") or ", ".join(f"{name}={value}" for name, value in entry.get("values", {}).items())
    released = ", ".join(f"{name} as set" for name in entry.get("released", []))
    return [str(entry.get("version", "–")), str(entry["update"]), entry["kind"], "; ".join(filter(None, (said, released)))]


def stop(options) -> None:
    """Ask a run to save and leave, and wait until it has."""
    folder = _one(options)
    answer(folder, request_stop(folder), STOP_S)
    until = time.monotonic() + STOP_S
    while read_status(folder).state in ("running", "stalled"):
        if time.monotonic() > until:
            raise InputError(f"{folder} has not stopped within {STOP_S:.0f} s; it will at its next update")
        time.sleep(0.2)
    print(f"{folder} stopped; synthnet runs resume {folder} goes on")


def resume(options) -> None:
    """Go on with a run that was stopped or killed, with the command it was started with."""
    from synthnet.lab import fork

    print(fork.resume(_one(options), options.code))


def compare(options) -> None:
    """The settings in which runs differ, and their best validation."""
    if len(options.names) < 2:
        raise InputError("name at least two runs to compare")
    folders = [Path(name) for name in options.names]
    flat = [flat_settings(folder) for folder in folders]
    keys = sorted({key for settings in flat for key in settings})
    differing = [key for key in keys if len({json.dumps(settings.get(key)) for settings in flat}) > 1]
    rows = [[key, *(str(settings.get(key, "–")) for settings in flat)] for key in differing if key != "run_dir"]
    for name in best_row(folders[0]):
        values = [best_row(folder).get(name) for folder in folders]
        rows.append([name, *("–" if value is None else f"{value:.4f}" for value in values)])
    table("settings that differ, and the best validation", ["", *(folder.name for folder in folders)], rows)


def prune(options) -> None:
    """Delete runs in one of the states asked for, after a confirmation. What runs is never touched."""
    if strange := sorted(set(options.state) - set(PRUNED)):
        raise InputError(f"--state takes {', '.join(PRUNED)}, got {', '.join(strange)}")
    found = list_runs(options.runs)
    chosen = [s for s in found if s.state in options.state and (not options.names or s.path in options.names)]
    spared = {Path(s.path) for s in found if s not in chosen}  # a trial may outlive its sweep: what holds it stays
    doomed = [s for s in chosen if not any(path.is_relative_to(s.path) for path in spared)]
    if not doomed:
        print("nothing to delete")
        return
    for status in doomed:
        print(f"{status.path}  {status.stage}, {status.state}, update {status.update}")
    if not options.yes and (not sys.stdin.isatty() or input(f"delete these {len(doomed)} runs? [y/N] ").strip().lower() != "y"):
        raise InputError("nothing was deleted; confirm with y, or pass --yes")
    for status in doomed:
        folder = Path(status.path)
        if folder.exists() and not any(is_locked(lock.parent) for lock in folder.rglob("lock")):  # nothing began meanwhile
            shutil.rmtree(folder)
    print(f"deleted {len(doomed)} runs")


def flat_settings(folder: Path) -> dict[str, object]:
    """The composed settings of a run by full name. Raises: InputError where it is no run."""
    return by_full_name(read_settings(folder))


def validations(rows: list[dict], metric: str) -> list[float]:
    """What the rows of metrics.jsonl that validate say of a metric, in order."""
    return [value for row in rows if isinstance(value := row.get(f"val/{metric}"), float)]


def best_row(folder: Path) -> dict[str, float]:
    """The validation with the best score."""
    rows = [row for row in records(folder / "metrics.jsonl") if isinstance(row.get("val/score"), float)]
    best = max(rows, key=lambda row: row["val/score"], default={})
    return {name: value for name, value in best.items() if name.startswith("val/") and isinstance(value, float)}


def _one(options) -> Path:
    if len(options.names) != 1:
        raise InputError(f"name one run, got {len(options.names)}")
    return Path(options.names[0])


def _progress(status: RunStatus) -> str:
    return f"{status.update} / {status.updates}" if status.updates else "–"


def _score(status: RunStatus) -> str:
    return "–" if status.score is None else f"{status.score:.4f}"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    unit, size = next(((u, s) for u, s in (("d", 86400), ("h", 3600), ("min", 60)) if seconds >= s), ("s", 1))
    return f"{seconds / size:.0f} {unit} ago"
