"""Recipes found on val, and kept: for how long twins of a task train that says nothing of it, and how strong twins do."""

import contextlib
import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from synthnet.engine import Objective, Recipe, Training, train_while
from synthnet.errors import InputError
from synthnet.files import cache_folder, write_atomic
from synthnet.progress import Bar
from synthnet.seeds import generator
from synthnet.tasks.fingerprint import functions_of
from synthnet.tasks.judging import judge, trained
from synthnet.tasks.task import Task

FEW_NETS, PATIENCE, MOST_EPOCHS = 4, 20, 200
STRONG_NETS, COARSE, MOST_TRIED = 4, 32, 64
START_AT = {"rate": 3e-3, "decay": 0.1, "epochs": 1.0, "noise": 0.3, "warp": 0.0, "smoothing": 0.0}
PLAIN = {**START_AT, "noise": 0.0, "epochs": 2.0}  # a search that the clock ends has tried what suits convolutions, too


def recipe_of(task: Task) -> Recipe:
    """The recipe of a task's twins; where it says no epochs, as many as val gains from, found once and kept.

    Four nets train for as long as the best epoch lies in the second half of them or the last twenty: the best by half the
    metric and half the loss on val, which tells more on few examples.
    """
    if task.recipe.epochs is not None:
        return task.recipe
    kept = recall(task, "twins")
    if kept is None:
        if task.variant is not None:
            raise InputError(f"task {task.name} has variants: give recipe=synthnet.Recipe(rate, batch, epochs) for its twins")
        start, scores = task.draw_start("val", list(range(FEW_NETS))), []

        def go_on(epoch: int, nets: Tensor) -> bool:
            scores.append(val_quality(task, nets))
            return epoch < MOST_EPOCHS and epoch < max(_first_best(scores) + PATIENCE, 2 * _first_best(scores))

        train_while(task.network, start, *task.examples("train"), Training(task.recipe), go_on)
        kept = remember(task, "twins", asdict(replace(task.recipe, epochs=_first_best(scores))))
    return Recipe(**kept)


def _first_best(scores: list[float]) -> int:
    """The first epoch that reaches the best score but for a thousandth."""
    return next(epoch for epoch, value in enumerate(scores, 1) if value >= max(scores) - 1e-3)


@dataclass(frozen=True)
class Strong:
    """A recipe that was searched for; the quality of its nets on val (`quality_of`: no accuracy), by which it was chosen; how
    many settings were tried in how many seconds, and whether the search was done or ended by the clock."""

    recipe: Recipe
    val: float
    tried: int
    seconds: float
    done: bool

    @property
    def training(self) -> Training:
        return Training(self.recipe, per_run_order=True)


def strong_recipe(task: Task, seconds: float | None = None, done: bool = False) -> Strong:
    """The recipe of strong twins, kept once it was searched for: AdamW with a cosine, every net in its own batch order; rate,
    weight decay, epochs, input noise, warps of images and label smoothing by the quality of four nets on val.

    Thirty-two settings are drawn from a grid, then the best one's neighbours are tried until it is better than all of them, or
    sixty-four were tried; a winner at an edge has neighbours beyond it. `seconds`: ends the search early; `done`: what was
    found so is not enough.
    """
    if (kept := recall(task, "strong")) is not None and (kept["done"] or not done):
        return Strong(Recipe(**kept.pop("recipe")), **kept)
    base, began, draw = recipe_of(task), time.monotonic(), generator(0, "strong")
    grid, found = _grid(task), {}
    over = lambda: seconds is not None and found and time.monotonic() - began > seconds  # noqa: E731

    def attempt(setting: tuple) -> None:
        if setting not in found and not over():
            found[setting] = _try(task, base, dict(zip(grid, setting, strict=True)))
            bar.advance(note=f"quality on val {max(found.values()):.4f}")

    with Bar(f"strong twins of {task.name}", MOST_TRIED) as bar:
        for first in (START_AT, PLAIN):
            attempt(tuple(first[name] for name in grid))
        while len(found) < min(COARSE, math.prod(map(len, grid.values()))) and not over():
            attempt(tuple(choices[int(torch.randint(len(choices), (1,), generator=draw))] for choices in grid.values()))
        best = None
        while best != (best := max(found, key=lambda each: found[each])) and len(found) < MOST_TRIED and not over():
            for near in _neighbours(best, grid):
                attempt(near) if len(found) < MOST_TRIED else None
    recipe, spent = _recipe(base, dict(zip(grid, best, strict=True))), round(time.monotonic() - began, 1)
    made = Strong(recipe, found[best], len(found), spent, not over())
    remember(task, "strong", asdict(made))
    return made


def _grid(task: Task) -> dict[str, list[float]]:
    """What each setting may be, in order; epochs as shares of the twins'."""
    grid = {"rate": [1e-3, 3e-3, 1e-2], "decay": [0.0, 0.1, 0.5], "epochs": [0.5, 1.0, 2.0], "noise": [0.0, 0.3, 0.6, 1.0]}
    if not task.floating:
        del grid["noise"]
    if task.images:
        grid["warp"] = [0.0, 0.03, 0.06]
    return {**grid, "smoothing": [0.0, 0.1]} if task.objective.plain else grid


def _neighbours(setting: tuple, grid: dict[str, list[float]]) -> list[tuple]:
    """The settings one step away in one thing; beyond an edge, half or twice the value there."""
    found = []
    for place, (value, choices) in enumerate(zip(setting, grid.values(), strict=True)):
        known = sorted({*choices, value})
        at = known.index(value)
        below = known[at - 1] if at else value / 2
        above = known[at + 1] if at + 1 < len(known) else value * 2
        found += [(*setting[:place], other, *setting[place + 1 :]) for other in (below, above) if other != value]
    return found


def _recipe(base: Recipe, setting: dict[str, float]) -> Recipe:
    epochs = max(1, round(base.epochs * setting["epochs"]))
    rest = (setting.get("noise", 0.0), setting.get("warp", 0.0), min(setting.get("smoothing", 0.0), 0.4))
    return Recipe(setting["rate"], base.batch_size, epochs, setting["decay"], True, *rest)


def _try(task: Task, base: Recipe, setting: dict[str, float]) -> float:
    recipe, seeds = _recipe(base, setting), list(range(STRONG_NETS))
    start, spec = task.draw_start("val", seeds), task.draw_spec("val", seeds)
    return val_quality(task, trained(task, start, Training(recipe, per_run_order=True), run_ids=seeds, spec=spec), spec)


def val_quality(task: Task, nets: Tensor, spec: Tensor | None = None) -> float:
    """What `quality_of` makes of metric and loss on val, mean over nets [net weights]."""
    metric, loss = (part.mean().item() for part in judge(task, nets, *task.examples("val"), spec))
    return quality_of(task.objective, metric, loss)


def quality_of(objective: Objective, metric: float, loss: float) -> float:
    """Half the metric and half the loss, as `engine.quality` weighs them: 0 for a guesser but for its metric, 1 at most."""
    return 0.5 * metric + 0.5 * (1 - min(loss / objective.chance, 2.0))


def recall(task: Task, kind: str) -> dict | None:
    """What was found for a task of these data, this net and these measures, if anything."""
    try:
        return json.loads(_place(task, kind).read_text())
    except (OSError, ValueError):
        return None


def remember(task: Task, kind: str, found: dict) -> dict:
    """Keep what was found, where the system lets us."""
    path = _place(task, kind)
    with contextlib.suppress(OSError, InputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(found) + "\n")
    return found


def _place(task: Task, kind: str) -> Path:
    objective = task.objective
    told = [
        task.arch.to_dict(),
        task.data_key,
        task.data_set,
        asdict(task.recipe),
        objective.kind,
        objective.name,
        torch.__version__,
    ]
    text = json.dumps([*told, *functions_of(task)], sort_keys=True)
    return cache_folder() / "recipes" / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
