"""From nothing to a policy by a recipe that needs no hand: `synthnet learn`.

It finds the recipes of twins and strong twins; a first stage begins where logits are whitened and ends as its rate has fallen,
a last one trains on more synth steps at half the rate. Every decision is a line of decisions.jsonl in its run directory, with
its reason; the same command reads them again, and goes on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean

from synthnet.config import compose
from synthnet.errors import InputError
from synthnet.lab.alone import by_rewards
from synthnet.lab.book import Book
from synthnet.lab.presets import DISTIL, LAST_STEPS, PAIRS_TRUNK, RATES, SIZES, TRUNK, by_rewards_of
from synthnet.policy import read_policy
from synthnet.runs import RunDirectory, Setup
from synthnet.runs.journal import records
from synthnet.stages import STAGES, as_text, named_policy, run_stage, setup_of, without_shape
from synthnet.tasks import Task, quality_of, recipe_of, strong_recipe

PACE_UPDATES, FEWEST, MOST = 12, 120, 5000  # updates of a stage
ENOUGH = 1500  # updates of a first stage, below which they are made smaller
SHARES = {"strong": 0.12, "first": 0.7}  # of all the time there is; of what is left then
PAIRS_RUNS, PAIRS_SHARE = 256, 0.35
LARGE, VAL_SEEDS = 5_000, (32, 12)  # weights; seeds watched of smaller and of larger nets, whose twins are grown once
NOISES, WARPS = (0.3, 0.6), (0.03, 0.06)  # least and most, whatever strong twins had


def prepare(name: str, given: Mapping[str, object]) -> tuple[Task, Setup]:
    """The task, and what its run is started with. `given`: settings that the recipe leaves as they are. Raises: InputError for
    bad settings."""
    given = {**given, "task": name}
    config = compose(given)
    task, command = config.build_task(), ["synthnet", "learn", name, *as_text(given)]
    reads = compose({**DISTIL, **given}).distil.reads_zoo if task.data is not None else False
    if reads and "zoo_dir" not in given:
        raise InputError(
            "distil.labels=soft, distil.anchor and distil.differ read a zoo, and learn makes none: name one, zoo_dir=…"
        )
    if task.family or task.joint:
        raise InputError(f"learn takes one net and one data set; {name} has several: train it by its stages")
    return task, setup_of("learn", task, config, given, command)


def learn(task: Task, setup: Setup, minutes: float, rewards_only: bool = False) -> tuple[Path, list[dict]]:
    """Learn a policy in the run that `setup` names; returns its file, and what was decided. Raises: InputError for a budget of
    no meaning."""
    if not 0 < minutes < 1e5:
        raise InputError(f"--minutes should be a positive number, got {minutes}")
    if rewards_only and task.variant is not None:
        raise InputError("--rewards-only begins with pairs, which are of one task; a task whose data have variants has none")
    with RunDirectory(setup) as run:
        book = Book(run.path / "decisions.jsonl", 60 * minutes)
        return Course(task, dict(setup.given), run.path, book, rewards_only).run(), book.entries


@dataclass
class Course:
    """The recipe under way in its folder."""

    task: Task
    given: dict[str, object]
    folder: Path
    book: Book
    rewards_only: bool = False

    def __post_init__(self):
        start = self.given.pop("policy_from", None)
        self.start = {"policy_from": start} if start else {}

    def run(self) -> Path:
        """The best policy's file. Where another policy was named, that one is what all begins with."""
        if self.task.data is None:
            return by_rewards(self)
        return self.by_pairs() if self.rewards_only else self.by_loss()

    def by_loss(self) -> Path:
        """One long stage of distil from nothing, and one on more synth steps."""
        book, own = self.book, self.references()
        size, own, pace = self.size_of_updates(own)
        further = self.steps(LAST_STEPS[size], "distil")
        best, score, rate = self.first(own, pace * mean(own["distil.steps"]))
        updates = book.decide("length of the last stage", self.length, pace * mean(further), book.left, MOST // 2)
        if updates:
            more = {"distil.steps": further, "distil.optim.learning_rate": rate / 2, "policy_from": str(best)}
            path = self.stage("last", "distil", without_shape({**own, **more}), updates)
            best, score = self.better(best, score, path, "outcome of the last stage")
        book.decide("end", self.why_end, best, score, updates)
        return best

    def first(self, own: dict, pace: float) -> tuple[Path, float, float]:
        """The first stage, its score on val and its rate: logits are whitened until their losses lead somewhere; at another
        rate where it does not. A policy to begin with is the result unless it got better."""
        book, found = self.book, []
        if self.start:
            path = self.stage("start", "distil", {**own, **self.start, "distil.standardised": 0}, 0)
            found.append((book.decide("outcome of the start", self.score, path), path, RATES[0]))
        fixed = self.given.get("distil.optim.learning_rate")
        for number, rate in enumerate(RATES if fixed is None else [float(fixed)], 1):
            seconds = (SHARES["first"] if number == 1 else 1.0) * book.left
            updates = book.decide(f"length of stage {number}", self.length, pace, seconds)
            if not updates and found:
                break
            updates = updates or FEWEST
            blind = {"distil.standardised": updates // (12 if self.start else 3), "distil.optim.learning_rate": rate}
            path = self.stage(f"first-{number}", "distil", {**own, **self.start, **blind}, updates)
            found.append((book.decide(f"outcome of stage {number}", self.score, path), path, rate))
            if book.decide(f"stage {number} leads somewhere", self.leads, path):
                break
        score, path, rate = max(found, key=lambda entry: entry[0])
        return path, score, rate

    def by_pairs(self) -> Path:
        """Pairs of weight states of conventional runs, then GRPO: no gradient passes through the target net at any stage."""
        book, found, steps = self.book, self.references(), self.steps([1, 2], "grpo")
        zoo = self.stage("zoo", "zoo", {"zoo.runs": PAIRS_RUNS, "zoo.heldout": 16})
        own = {"zoo_dir": str(zoo), **{name: found[name] for name in ("reward.input_noise", "grpo.val_seeds")}}
        new = {**self.shaped(PAIRS_TRUNK, steps), **self.start, "pairs.val_steps": sorted(set(steps))}
        pace = book.decide("pace", self.pace_of, self.stage("pace", "pairs", {**own, **new}, PACE_UPDATES))
        updates = book.decide("length of pairs", self.length, pace, PAIRS_SHARE * book.left) or FEWEST
        best = self.stage("pairs", "pairs", {**own, **new}, updates)
        score = book.decide("outcome of pairs", self.score, best)
        by_example = self.task.objective.plain and self.given.get("grpo.rollout") != "net"
        own |= {**by_rewards_of(self.task.network, by_example), "grpo.steps": steps, "policy_from": str(best)}
        pace = book.decide("pace of GRPO", self.pace_of, self.stage("pace-grpo", "grpo", own, PACE_UPDATES))
        updates = book.decide("length of GRPO", self.length, pace * mean(steps), book.left)
        if updates:
            best, score = self.better(best, score, self.stage("grpo", "grpo", own, updates), "outcome of GRPO")
        book.decide("end", self.why_end, best, score, updates)
        return best

    def better(self, best: Path, score: float, path: Path, what: str) -> tuple[Path, float]:
        """The better policy of two on val, and its score."""
        reached = self.book.decide(what, self.score, path)
        return (path, reached) if reached > score else (best, score)

    def size_of_updates(self, own: dict) -> tuple[str, dict, float]:
        """Which of `SIZES` leaves enough updates, what stages of it train with, and the seconds of one in one synth step."""
        for size, settings in SIZES.items():
            steps = self.steps(settings["distil.steps"], "distil")
            shape = self.shaped(TRUNK, [*steps, *self.steps(LAST_STEPS[size], "distil")])
            sized = {**own, **shape, **settings, "distil.steps": steps}
            path = self.stage(
                f"pace-{size}", "distil", {**sized, **self.start, "distil.standardised": PACE_UPDATES}, PACE_UPDATES
            )
            pace = self.book.decide(f"pace of {size} updates", self.pace_of, path)
            if self.book.decide(f"{size} updates", self.quick, pace * mean(steps)):
                break
        return size, sized, pace

    def quick(self, pace: float) -> tuple[bool, str]:
        """Whether there is time for enough of such updates."""
        updates = self.length(pace, SHARES["first"] * self.book.left)[0] or 0
        return updates >= ENOUGH, f"{updates} in the first stage, {ENOUGH} are enough"

    def shaped(self, trunk: Mapping[str, object], steps: list[int]) -> dict[str, object]:
        """What a new policy for these K is built of; nothing where there is one already, and its K alone where a backbone was
        asked for."""
        if self.start:
            return {}
        own = any(name.partition(".")[0] == "backbone" for name in self.given)
        return {"k_max": max(steps), **({} if own else trunk)}

    def steps(self, usual: list[int], stage: str) -> list[int]:
        """The K that a stage trains on: what was asked for by name, or the usual ones of those that the policy serves."""
        if asked := self.given.get(f"{stage}.steps"):
            return list(asked)
        served = (
            named_policy(self.start["policy_from"]).config.k_max if self.start else int(self.given.get("k_max", max(usual)))
        )
        return [k for k in usual if k <= served] or [1]

    def pace_of(self, path: Path) -> tuple[float, str]:
        """Seconds of an update in one synth step, by the run that made a policy; the first third is left out, which pays for
        what later ones do not. The clock of a run begins anew where it goes on."""
        rows = [row for row in records(path.parent / "metrics.jsonl") if "loss" in row]
        pairs = [
            (after["elapsed_s"] - before["elapsed_s"], after.get("n_steps", 1))
            for before, after in pairwise(rows[len(rows) // 3 :])
        ]
        seconds, steps = (sum(part) for part in zip(*[each for each in pairs if each[0] > 0] or [(1e-4, 1)], strict=True))
        return seconds / steps, f"{seconds / steps:.3f} s an update of one step"

    def why_end(self, best: Path, score: float, done: object) -> tuple[str, str]:
        why = "all stages are done" if done else "the time is used up"
        return best.parent.name, f"{why}; the best policy has a score of {score:.4f} on val"

    def references(self) -> dict[str, object]:
        """The recipes of twins and strong twins; under the noise that helped the latter the policy learns."""
        book, task = self.book, self.task

        def twins():
            recipe = recipe_of(task)
            return recipe.epochs, f"Adam at {recipe.learning_rate:g} for {recipe.epochs} epochs"

        def strong():
            found = strong_recipe(task, SHARES["strong"] * book.seconds)
            recipe = found.recipe
            value = {"noise": recipe.input_noise, "warp": recipe.warp, "quality": found.val}
            text = f"the best of {found.tried} settings on val ({found.seconds:.0f} s): rate {recipe.learning_rate:g}, "
            text += f"weight decay {recipe.weight_decay:g}, {recipe.epochs} epochs, noise {recipe.input_noise:g}"
            return value, text + (f", warp {recipe.warp:g}" if recipe.warp else "")

        book.decide("twins", twins)
        found = book.decide("strong twins", strong)
        self.strong_quality = found["quality"]
        noise = min(max(found["noise"], NOISES[0]), NOISES[1]) if task.floating else 0.0
        warp = min(max(found["warp"], WARPS[0]), WARPS[1]) if task.images else 0.0
        watched = VAL_SEEDS[task.network.spec.n_weights >= LARGE]
        seeds = {"distil.val_seeds": watched, "grpo.val_seeds": watched}
        return {**DISTIL, "distil.input_noise": noise, "reward.input_noise": noise, "distil.warp": warp, **seeds}

    def leads(self, path: Path) -> tuple[bool, str]:
        """Whether a policy is half way or more from guessing to strong twins, by what their search judged by on val."""
        objective = self.task.objective
        guess = 0.5 / self.task.n_classes if objective.kind == "classes" else 0.0
        reached = max(quality_of(objective, *each) for each in self.on_val(path).values())
        half = guess + 0.5 * (self.strong_quality - guess)
        return reached > half, f"quality {reached:.3f}, half way to strong nets is {half:.3f}"

    def length(self, pace: float, seconds: float, most: int = MOST, fewest: int = FEWEST) -> tuple[int | None, str]:
        """Updates for so many seconds; where those are too few, the fewest that are worth beginning, if there is time."""
        left = 0.9 * self.book.left
        updates = int(min(most, min(seconds, left) / (1.2 * pace)))
        if updates < fewest:
            updates = fewest if 1.2 * pace * fewest <= left else 0
        if not updates:
            return None, f"{fewest} updates would take {1.2 * pace * fewest:.0f} s, and {max(left, 0):.0f} s are left"
        return updates, f"{updates} updates, about {1.2 * pace * updates:.0f} s"

    def on_val(self, path: Path) -> dict[int, tuple[float, float]]:
        """K -> metric and loss on val of the policy that a stage made."""
        after = read_policy(path).record["stages"][-1]["after"]
        return {k: (after[f"accuracy_k{k}"], after[f"loss_k{k}"]) for k in range(1, 65) if f"accuracy_k{k}" in after}

    def score(self, path: Path) -> tuple[float, str]:
        """What the best K has on val."""
        found = self.on_val(path)
        shown = ", ".join(f"K = {k} {value:.4f}" for k, (value, _) in found.items())
        best = max(self.task.objective.ranked(*each) for each in found.values())
        return best, f"val {self.task.objective.name} at {shown}"

    def stage(self, folder: str, kind: str, settings: Mapping[str, object], updates: int | None = None) -> Path:
        """Run a stage in a folder of its own, or go on with it; returns what it made."""
        path = self.folder / folder
        done = path / ("zoo.json" if kind == "zoo" else "policy.safetensors")
        if done.exists():
            return path if kind == "zoo" else done
        others = {"distil", "reward"} - {kind, *STAGES[kind].also}  # what the whole recipe trains with, of stages that read it
        settings = {name: value for name, value in settings.items() if name.partition(".")[0] not in others}
        if updates is not None:
            every = max(PACE_UPDATES, updates // 8)
            loop = {"updates": updates, "validate_every": every, "checkpoint_every": every}
            settings = {**settings, **{f"{kind}.loop.{name}": value for name, value in loop.items()}}
        told = {"lab.tensorboard": False, **settings, **self.given, "run_dir": str(path)}
        return run_stage(kind, compose(told), told, ["synthnet", kind, *as_text(told)])
