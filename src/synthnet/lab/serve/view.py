"""What the page shows of run directories, as plain data. Reads only, and never outside the runs folder."""

import itertools
import json
from pathlib import Path

from synthnet.errors import InputError
from synthnet.lab.table import best_row, flat_settings, validations
from synthnet.runs import APPLIED, is_run, lies_in, parse, read_given, read_status, records
from synthnet.settings import hot_knobs
from synthnet.stages import live_sections

MOST_ROWS = 5000  # in one answer
MOST_COMPARED = 12


def run_folder(root: Path, name: str) -> Path:
    """The folder of a run by its name below the runs folder. Raises: InputError for a name that leads elsewhere."""
    folder = root / name
    if not name or ".." in Path(name).parts or not lies_in(folder, root) or not is_run(folder):
        raise InputError(f"no run of that name: {name[:80]!r}")
    return folder


def metric_rows(folder: Path, after: int) -> dict:
    """The rows of metrics.jsonl after so many bytes, and where to go on; from the start again where the file was cut back."""
    path = folder / "metrics.jsonl"
    size = path.stat().st_size if path.is_file() else 0
    begin = after if 0 <= after <= size else 0
    if not size or begin == size:
        return {"rows": [], "next": begin, "reset": begin != after}
    with path.open("rb") as file:
        file.seek(begin)
        lines = file.read().split(b"\n")[:-1][:MOST_ROWS]
    rows = [record for line in lines if (record := parse(line)) is not None]
    return {"rows": rows, "next": begin + sum(len(line) + 1 for line in lines), "reset": begin != after}


def knob_view(folder: Path) -> list[dict]:
    """The hot knobs of a run: the value it was set to, its last logged value, and the bounds."""
    stage = read_status(folder).stage
    settings, logged = flat_settings(folder), {}
    for row in records(folder / "metrics.jsonl")[-50:]:
        logged |= {name.removeprefix("knob/"): value for name, value in row.items() if name.startswith("knob/")}
    found = []
    for name, knob in hot_knobs(live_sections(stage)).items():
        if name.startswith("backbone.") and not settings.get("backbone.experts"):
            continue
        value = logged.get(name, settings.get(name))
        bounds = (
            dict(zip(("low", "high"), knob.bounds, strict=True)) if knob.bounds else {"choices": knob.choices or (True, False)}
        )
        found.append({"name": name, "value": value, "set": settings.get(name), "moved": name in logged, **bounds})
    return found


def comparison(folders: list[Path]) -> dict:
    """The settings in which runs differ, and the validations of each."""
    if not 2 <= len(folders) <= MOST_COMPARED:
        raise InputError(f"choose 2 to {MOST_COMPARED} runs to compare")
    flat = [flat_settings(folder) for folder in folders]
    keys = sorted({key for settings in flat for key in settings if key != "run_dir"})
    differing = {key: [settings.get(key) for settings in flat] for key in keys}
    curves = []
    for folder in folders:
        rows = [row for row in records(folder / "metrics.jsonl") if isinstance(row.get("val/score"), float)]
        curves.append([[row.get("update"), row["val/score"]] for row in rows])
    return {
        "runs": [folder.name for folder in folders],
        "settings": {key: values for key, values in differing.items() if len({json.dumps(v) for v in values}) > 1},
        "best": [best_row(folder) for folder in folders],
        "curves": curves,
        "patches": [len([e for e in records(folder / APPLIED) if e.get("kind") == "patch"]) for folder in folders],
    }


def sweep_view(folder: Path) -> dict:
    """The trials of a sweep: from its results where it is over, else what the folder of each trial says so far."""
    results = folder / "results.json"
    if results.exists():
        try:
            found = json.loads(results.read_text())
            if {"metric", "trials"} <= set(found) and all(isinstance(trial, dict) for trial in found["trials"]):
                return found
            raise ValueError("it lists no trials")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{results.name} of this sweep is damaged: {str(error)[:100]}") from error
    settings = flat_settings(folder)
    metric, last = str(settings.get("sweep.metric", "score")), str((settings.get("stages") or [""])[-1])
    trials = [_trial(path, metric, last) for path in sorted(folder.glob("trial-*")) if is_run(path)]
    given = [trial["settings"] for trial in trials]
    swept = [name for name in dict.fromkeys(itertools.chain(*given)) if len({str(each.get(name)) for each in given}) > 1]
    for trial in trials:
        trial["settings"] = {name: trial["settings"].get(name) for name in swept if name != "run_dir"}
    return {"metric": metric, "trials": sorted(trials, key=lambda trial: (trial[metric] is None, -(trial[metric] or 0)))}


def _trial(folder: Path, metric: str, last: str) -> dict:
    values = validations(records(folder / last / "metrics.jsonl"), metric)
    state = read_status(folder).state
    return {"trial": folder.name, "state": state, metric: max(values, default=None), "settings": read_given(folder)}
