"""Asking a run for something: requests appended to its patches.jsonl, and what the run answered in its applied.jsonl."""

import math
import time
from pathlib import Path

from synthnet.errors import InputError
from synthnet.runs import APPLIED, MOST_UPDATES, REQUESTS, append, read_status, records
from synthnet.settings import hot_value
from synthnet.stages import STAGES, live_sections

POLL_S = 0.1


def request_patch(folder: Path, values: dict[str, object], over: int) -> int:
    """Ask a run to move hot knobs over so many updates; returns the request's number.

    Raises: InputError, before anything is written, for a run that is over, an unknown or cold knob, and a value that the knob
    cannot have. Whether values go together is judged by the run itself.
    """
    known = live_sections(_running(folder))
    if not 0 <= over <= MOST_UPDATES:
        raise InputError(f"--over must be from 0 to {MOST_UPDATES} updates, got {over}")
    if not values:
        raise InputError("name at least one KNOB=VALUE")
    checked = {}
    for name, value in values.items():
        try:
            checked[name] = hot_value(name, value, known)
        except InputError as error:
            raise InputError(str(error).replace("fork RUN", f"fork {folder}")) from error
    return _send(folder, {"kind": "patch", "values": checked, "over": over})


def request_rollback(folder: Path, to: int | None, weights: bool, over: int = 0) -> int:
    """Ask a run for the knob values of an earlier patch version (the last but one), and with `weights` for its best policy."""
    _running(folder)
    asked = {} if to is None else {"to": to}
    return _send(folder, {"kind": "rollback", **asked, "weights": weights, "over": over})


def request_stop(folder: Path) -> int:
    """Ask a run to save and leave at its next update."""
    _running(folder)
    return _send(folder, {"kind": "stop"})


def answer(folder: Path, request: int, patience_s: float) -> dict | None:
    """The entry of applied.jsonl about a request, waited for; None where the run has not got to it."""
    until = time.monotonic() + patience_s
    while True:
        found = [entry for entry in records(folder / APPLIED) if entry.get("request") == request]
        if found or time.monotonic() >= until or not math.isfinite(patience_s):
            return found[-1] if found else None
        time.sleep(POLL_S)


def _running(folder: Path) -> str:
    """The stage of a run that can still listen."""
    status = read_status(folder)
    if not live_sections(status.stage):
        kinds = ", ".join(name for name in STAGES if live_sections(name))
        raise InputError(f"{folder} is a {status.stage or 'foreign'} run: only {kinds} runs listen to requests")
    if status.state not in ("running", "stalled"):
        raise InputError(
            f"{folder} is not running ({status.state}); resume it first, or fork it: synthnet fork {folder} KEY=VALUE"
        )
    return status.stage


def _send(folder: Path, request: dict) -> int:
    return append(folder / REQUESTS, {**request, "time_s": time.time()}, sync=True)
