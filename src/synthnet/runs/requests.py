"""Asking a run for something: requests appended to its patches.jsonl, and what the run answered in its applied.jsonl."""

import math
import time
from pathlib import Path

from synthnet.errors import InputError
from synthnet.runs.journal import append, records
from synthnet.runs.knobs import LIVE_SECTIONS, MOST_UPDATES, MixtureKnobs, check_value
from synthnet.runs.live import APPLIED, REQUESTS
from synthnet.runs.status import read_status

POLL_S = 0.1


def parse_values(assignments: list[str]) -> dict[str, object]:
    """Values by knob from KEY=VALUE texts, in the grammar of settings. Raises: InputError for what is not one."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    values: dict[str, object] = {}
    for text in assignments:
        try:
            override = OverridesParser.create().parse_override(text)
            value = override.value()
        except HydraException as error:
            raise InputError(f"expected KNOB=VALUE, got {text!r}") from error
        if override.key_or_group in values:
            raise InputError(f"{override.key_or_group} is given twice")
        values[override.key_or_group] = value
    return values


def request_patch(folder: Path, values: dict[str, object], over: int, sections: dict[str, type]) -> int:
    """Ask a run to move hot knobs over so many updates; returns the request's number. `sections`: group -> its dataclass.

    Raises: InputError, before anything is written, for a run that is over, an unknown or cold knob, and a value that the knob
    cannot have. Whether values go together is judged by the run itself.
    """
    stage = _running(folder)
    known = {group: {**sections, "backbone": MixtureKnobs}[group] for group in LIVE_SECTIONS[stage]}
    if not 0 <= over <= MOST_UPDATES:
        raise InputError(f"--over must be from 0 to {MOST_UPDATES} updates, got {over}")
    if not values:
        raise InputError("name at least one KNOB=VALUE")
    checked = {}
    for name, value in values.items():
        try:
            checked[name] = check_value(name, value, known)
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
    if status.stage not in LIVE_SECTIONS:
        kinds = ", ".join(LIVE_SECTIONS)
        raise InputError(f"{folder} is a {status.stage or 'foreign'} run: only {kinds} runs listen to requests")
    if status.state not in ("running", "stalled"):
        raise InputError(
            f"{folder} is not running ({status.state}); resume it first, or fork it: synthnet fork {folder} KEY=VALUE"
        )
    return status.stage


def _send(folder: Path, request: dict) -> int:
    return append(folder / REQUESTS, {**request, "time_s": time.time()}, sync=True)
