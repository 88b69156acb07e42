"""From nothing to a policy by a recipe that needs no hand: `synthnet learn`.

It finds the recipes of twins and strong twins, grows a few of these as teachers, begins where logits are whitened, and goes
on in legs of what gained most on val by the second: distil at other rates, and GRPO by example where that is exact. Every
decision is a line of decisions.jsonl in its run directory, with its reason; the same command reads them again, and goes on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from synthnet.config import compose
from synthnet.errors import InputError
from synthnet.lab.alone import by_rewards
from synthnet.lab.book import Book
from synthnet.lab.legs import BEGIN, BEGIN_RATES, LEG, MOST_STEPS, PATIENCE, SMALL_TRUNK, TEACH, legs_of
from synthnet.policy import read_policy
from synthnet.runs import RunDirectory, Setup
from synthnet.runs.journal import records
from synthnet.stages import STAGES, as_text, named_policy, run_stage, setup_of
from synthnet.tasks import Task, grow_strong, recipe_of, strong_recipe, val_score
from synthnet.train import Zoo

PACE_UPDATES, FEWEST, MOST = 12, 120, 4000  # updates of a leg
SHARES = {"strong": 0.12, "teachers": 0.08, "begin": 0.35, "begin large": 0.65}  # of all the time there is
GAIN = 5e-4  # a leg gained nothing below this in the score on val
PAIRS_RUNS = 256
LEG_COSTS = 2.0  # an update of a leg whose pace is not known yet, in a beginning's: more images, two steps as well as one
TEACHERS, LARGE = (8, 64), 5_000  # nets; weights
VAL_SEEDS = {"large": 12, "small": 32}  # whose twins are grown, once, to tell how far apart nets lie


def prepare(name: str, given: Mapping[str, object]) -> tuple[Task, Setup]:
    """The task, and what its run is started with. `given`: settings that the recipe leaves as they are. Raises: InputError for
    bad settings."""
    given = {**given, "task": name}
    config = compose(given)
    task, command = config.build_task(), ["synthnet", "learn", name, *as_text(given)]
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
        if self.rewards_only:
            return self.by_pairs()
        book = self.book
        own = self.references()
        if own["distil.labels"] == "soft":
            runs = book.decide("teachers", self.how_many_teachers)
            own["zoo_dir"] = str(self.stage("teachers", "zoo", {**TEACH, "zoo.runs": runs}))
        book.decide("strong nets on val", self.strong_on_val, own.get("zoo_dir"))
        tried = self.stage("pace", "distil", {**own, **BEGIN, **self.start, "distil.standardised": PACE_UPDATES}, PACE_UPDATES)
        pace = book.decide("pace", self.pace_of, tried)
        best, score = self.begin(own, pace)
        return self.go_on(own, pace, best, score)

    def by_pairs(self) -> Path:
        """Pairs of weight states of conventional runs, then GRPO: no gradient passes through the target net at any stage."""
        book, found = self.book, self.references()
        zoo = self.stage("zoo", "zoo", {"zoo.runs": PAIRS_RUNS, "zoo.heldout": 16})
        own = {"zoo_dir": str(zoo), **{name: found[name] for name in ("reward.input_noise", "grpo.val_seeds")}}
        pace = book.decide("pace", self.pace_of, self.stage("pace", "pairs", {**own, **self.start}, PACE_UPDATES))
        updates = book.decide("length of pairs", self.length, pace, SHARES["begin"] * book.seconds, FEWEST)
        best = self.stage("pairs", "pairs", {**own, **self.start}, updates)
        return self.go_on(own, pace, best, book.decide("outcome of pairs", self.score, best))

    def go_on(self, own: dict, pace: float, best: Path, score: float) -> Path:
        """Legs, for as long as they gain; the best policy's file."""
        book, gains, paces = self.book, {}, {}
        idle = number = 0
        while idle < PATIENCE and book.goes_on:
            number += 1
            leg = book.decide(f"leg {number}", self.next_leg, gains)
            if not leg:
                break
            expected = paces.get(leg["kind"], LEG_COSTS * pace)
            updates = book.decide(f"length of leg {number}", self.length, expected, LEG * book.seconds)
            if not updates:
                break
            began, settings = book.elapsed, {**own, **leg["settings"], "policy_from": str(best)}
            path = self.stage(f"leg-{number}", leg["kind"], settings, updates)
            outcome = book.decide(f"outcome of leg {number}", self.outcome, path, score, began)
            gains[leg["name"]], paces[leg["kind"]] = outcome["rate"], outcome["pace"]
            idle = 0 if outcome["gained"] else idle + 1
            if outcome["gained"]:
                best, score = path, outcome["score"]
        book.decide("end", self.why_end, best, score, idle)
        return best

    def pace_of(self, path: Path) -> tuple[float, str]:
        """Seconds an update of the run that made a policy: the median, the first third left out, which pays for what later
        ones do not. The clock of a run begins anew where it goes on."""
        times = [row["elapsed_s"] for row in records(path.parent / "metrics.jsonl") if "elapsed_s" in row]
        each = [after - before for before, after in pairwise(times[len(times) // 3 :]) if after > before]
        pace = max(median(each), 1e-4) if each else 1e-4
        return pace, f"{pace:.3f} s an update"

    def why_end(self, best: Path, score: float, idle: int) -> tuple[str, str]:
        why = "nothing is gained any more" if idle >= PATIENCE else "the time is used up"
        return best.parent.name, f"{why}; the best policy has a score of {score:.4f} on val"

    def references(self) -> dict[str, object]:
        """The recipes of twins and strong twins; what the latter train with is what the policy begins with."""
        book, task = self.book, self.task

        def twins():
            recipe = recipe_of(task)
            return recipe.epochs, f"Adam at {recipe.learning_rate:g} for {recipe.epochs} epochs"

        def strong():
            found = strong_recipe(task, SHARES["strong"] * book.seconds)
            recipe = found.recipe
            value = {"noise": recipe.input_noise, "warp": recipe.warp}
            text = f"the best of {found.tried} settings on val ({found.seconds:.0f} s): rate {recipe.learning_rate:g}, "
            text += f"weight decay {recipe.weight_decay:g}, {recipe.epochs} epochs, noise {recipe.input_noise:g}"
            return value, text + (f", warp {recipe.warp:g}" if recipe.warp else "")

        book.decide("twins", twins)
        found = book.decide("strong twins", strong)
        noise = max(found["noise"], 0.3) if task.floating else 0.0
        warp = max(found["warp"], 0.03) if task.images else 0.0
        own_targets = task.objective.loss is not None or task.variants is not None  # a teacher's would be others
        labels = "hard" if own_targets else "soft"
        new = {} if self.start else {"k_max": self.most_steps}
        if self.most_steps == 1:
            new = new | {"distil.steps": [1], "grpo.steps": [1]}
        if self.large and not self.start and not any(name.partition(".")[0] == "backbone" for name in self.given):
            new = new | SMALL_TRUNK
        watched = VAL_SEEDS["large" if self.large else "small"]
        size = {"distil.nets": 4 if self.large else 8, "distil.val_seeds": watched, "grpo.val_seeds": watched, **new}
        noises = {"distil.input_noise": noise, "reward.input_noise": noise}
        return {**noises, "distil.warp": warp, "distil.labels": labels, **size}

    def strong_on_val(self, teachers: str | None) -> tuple[float, str]:
        """The mean score of a few strong nets: the teachers, or, where there are none, some that are grown for it."""
        if teachers:
            nets, spec = Zoo.open(teachers).trained(TEACHERS[0]), None
        else:
            seeds = list(range(TEACHERS[0]))
            start, spec = self.task.draw_start("val", seeds), self.task.draw_spec("val", seeds)
            nets, _ = grow_strong(self.task, start, spec=spec)
        score = val_score(self.task, nets, spec)
        return score, f"a score of {score:.4f}"

    def how_many_teachers(self) -> tuple[int, str]:
        """As many strong nets as the time for them allows, judged by how long a few took to be searched for, whose epochs were
        half of the twins', as many or twice as many."""
        if self.large:
            return TEACHERS[0], f"{TEACHERS[0]} strong nets: more would take the time of updates"
        found = strong_recipe(self.task, SHARES["strong"] * self.book.seconds)
        longer = found.recipe.epochs / (7 / 6 * recipe_of(self.task).epochs)
        each = longer * found.seconds / max(found.tried, 1) / 4
        runs = int(min(TEACHERS[1], max(TEACHERS[0], SHARES["teachers"] * self.book.seconds / max(each, 1e-3))))
        return runs, f"{runs} strong nets, whose mean predictions are the labels, at about {each:.2g} s each"

    def begin(self, own: dict, pace: float) -> tuple[Path, float]:
        """A policy that leads somewhere: logits are whitened for the first third; other rates where one does not."""
        book, found = self.book, []
        for number, rate in enumerate(BEGIN_RATES, 1):
            seconds = SHARES["begin large" if self.large else "begin"] * book.seconds
            updates = book.decide(f"length of beginning {number}", self.length, pace, seconds, FEWEST)
            blind = updates // (12 if self.start else 3)
            settings = {**own, **BEGIN, **self.start, "distil.optim.learning_rate": rate, "distil.standardised": blind}
            began = book.elapsed
            path = self.stage(f"begin-{number}", "distil", settings, updates)
            updates = book.decide(f"beginning {number} goes on", self.more, path, seconds, seconds - (book.elapsed - began))
            if updates:
                settings = {**settings, "distil.standardised": 0, "policy_from": str(path)}
                path = self.stage(f"begin-{number}-on", "distil", settings, updates)
            score = book.decide(f"outcome of beginning {number}", self.score, path)
            found.append((score, path))
            if score > self.threshold() or not book.more(f"length of beginning {number + 1}", 0.3):
                break
        score, path = max(found, key=lambda entry: entry[0])
        return path, score

    @property
    def most_steps(self) -> int:
        """The K up to which the policy is made: two, all that legs train on, or what was asked for by name."""
        if self.start:
            return named_policy(self.start["policy_from"]).config.k_max
        asked = [k for stage in ("distil", "grpo") for k in self.given.get(f"{stage}.steps") or ()]
        return int(self.given.get("k_max", max([MOST_STEPS, *asked])))

    @property
    def large(self) -> bool:
        """Whether updates are so slow that more of them are worth more than more start weights, or a larger trunk."""
        return self.task.network.spec.n_weights >= LARGE

    def threshold(self) -> float:
        """The score on val from which on a beginning leads somewhere: nine tenths of the way from guessing to strong twins, of
        large nets half of it: those are still on their way."""
        guess = (1 / self.task.n_classes if self.task.objective.kind == "classes" else 0.0) - 0.1 * self.task.objective.chance
        strong = next(entry["value"] for entry in self.book.entries if entry["what"] == "strong nets on val")
        return guess + (0.5 if self.large else 0.9) * (strong - guess)

    def next_leg(self, gains: dict[str, float]) -> tuple[dict | None, str]:
        """What was not tried yet, in order; then what gained most by the second."""
        by_example = self.task.objective.plain and self.given.get("grpo.rollout") != "net"
        legs = legs_of(self.task.network, by_example, self.large, self.rewards_only)
        fresh = [leg for leg in legs if leg.name not in gains]
        if fresh:
            return fresh[0].told, f"{fresh[0].name}: not tried yet"
        name = max(gains, key=lambda each: gains[each])
        if gains[name] <= 0:
            return None, "nothing that was tried gained anything"
        leg = next(leg for leg in legs if leg.name == name)
        return leg.told, f"{name}: gained most, {gains[name]:.2g} a second"

    def length(self, pace: float, seconds: float, least: int = 0) -> tuple[int | None, str]:
        """Updates for so many seconds; where those are too few, the fewest that are worth beginning, if there is time."""
        left = 0.9 * self.book.left
        updates = int(max(least, min(MOST, min(seconds, left) / (1.2 * pace))))
        if updates < FEWEST:
            updates = FEWEST if 1.2 * pace * FEWEST <= left else 0
        if not updates:
            return None, f"{FEWEST} updates would take {1.2 * pace * FEWEST:.0f} s, and {max(left, 0):.0f} s are left"
        return updates, f"{updates} updates, about {1.2 * pace * updates:.0f} s"

    def more(self, path: Path, seconds: float, left: float) -> tuple[int | None, str]:
        """Updates to go on with where a beginning took far fewer seconds than foreseen, on a machine that was busy then."""
        if left < 0.25 * seconds:
            return None, f"not at all: {max(seconds - left, 0):.0f} of its {seconds:.0f} s are spent"
        return self.length(self.pace_of(path)[0], left)

    def score(self, path: Path) -> tuple[float, str]:
        """What the best K has on val: a beginning is in one synth step, what comes after it in one and two."""
        after = read_policy(path).record["stages"][-1]["after"]
        found = {k: (after[f"accuracy_k{k}"], after[f"loss_k{k}"]) for k in range(1, 65) if f"accuracy_k{k}" in after}
        shown = ", ".join(f"K = {k} {value:.4f}" for k, (value, _) in found.items())
        best = max(self.task.objective.ranked(*each) for each in found.values())
        return best, f"val {self.task.objective.name} at {shown}"

    def outcome(self, path: Path, before: float, began: float) -> tuple[dict, str]:
        score, text = self.score(path)
        gain, seconds = score - before, max(self.book.elapsed - began, 1e-3)
        verdict = f"{gain:+.4f}" + ("" if gain >= GAIN else ", not kept")
        found = {"score": score, "gained": gain >= GAIN, "rate": gain / seconds, "pace": self.pace_of(path)[0]}
        return found, f"{text} ({verdict})"

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
