"""From a new policy to one that works by rewards alone: the part of `learn` for tasks without data."""

from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from synthnet.lab.presets import ALONE, FEW_STARTS, LEG, PATIENCE, RACE_UPDATES, RACES
from synthnet.policy import read_policy
from synthnet.stages import without_shape
from synthnet.tasks import is_own
from synthnet.tasks.plants import Plant

if TYPE_CHECKING:
    from synthnet.lab.learn import Course


def by_rewards(course: "Course") -> Path:
    """GRPO from a new policy: short races of noises, optimisers and rates, of which the best goes on in legs while it gains."""
    book, found = course.book, []
    ours = isinstance(course.task.reward, Plant) and not is_own(course.given["task"])
    alone = ALONE | (FEW_STARTS if ours else {})
    for number, (sigma, rule, rate) in enumerate(RACES, 1):
        ruled = {"grpo.sigma": sigma, "grpo.optim.rule": rule, "grpo.optim.learning_rate": rate}
        settings = {**alone, **course.start, **ruled}
        path = course.stage(f"race-{number}", "grpo", settings, RACE_UPDATES)
        told = f"noise {sigma:g}, {rule} at {rate:g}"
        found.append((book.decide(f"race {number}", rewarded, path, told), path, settings))
        if number > 1 and not book.more(f"race {number + 1}", 0.5):
            break
    score, best, settings = max(found, key=lambda entry: entry[0])
    pace, steps = book.decide("pace", course.pace_of, best), course.steps(ALONE["grpo.steps"], "grpo")
    idle, number, length = 0, 0, partial(course.length, fewest=RACE_UPDATES)
    while idle < PATIENCE and book.goes_on:
        number += 1
        updates = book.decide(f"length of leg {number}", length, pace * mean(steps), LEG * book.seconds)
        if not updates:
            break
        path = course.stage(f"leg-{number}", "grpo", {**without_shape(settings), "policy_from": str(best)}, updates)
        reached = book.decide(f"outcome of leg {number}", rewarded, path, f"from {score:.4g}")
        gained = reached > score + 0.01 * abs(score)
        idle = 0 if gained else idle + 1
        best, score = (path, reached) if reached > score else (best, score)
        settings = {**settings, "grpo.sigma": 0.5 * settings["grpo.sigma"]} if not gained else settings
    book.decide("end", course.why_end, best, score, idle >= PATIENCE)
    return best


def rewarded(path: Path, told: str) -> tuple[float, str]:
    after = read_policy(path).record["stages"][-1]["after"]
    return after["score"], f"mean reward {after['score']:.4g} ({told})"
