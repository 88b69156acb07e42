"""The loop that every policy stage shares: updates, schedule, EMA, validation, checkpoints, exact resume, early stop.

A stage gives a `step` and a `validate(policy, share of updates done)` (-> metrics with `score`); what differs between stages
is in those two functions alone. `step(update, policy)` yields (loss, metrics) once per optimiser step: more than once where a
stage goes over the same samples again; a loss without a gradient says that the step has accumulated the gradients itself.
"""

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NoReturn

import torch
from torch import Tensor, nn

from synthnet.errors import InputError
from synthnet.interrupt import StopRequest
from synthnet.policy.policy import Policy
from synthnet.progress import Bar
from synthnet.runs import ranks
from synthnet.runs.directory import RunDirectory
from synthnet.runs.live import Live
from synthnet.train.guards import GuardConfig
from synthnet.train.optimizer import Optimizer
from synthnet.train.snapshot import keep_best, restore_state, save_state

SKIPS = 3  # updates in a row without a finite gradient before the guard answers
NO_LIMITS = GuardConfig(kl=None, norm=None, drop=None)
FRESH = {
    "update": 0,
    "best_score": -math.inf,
    "best_update": 0,
    "highest": -math.inf,
    "since_best": 0,
    "rate": 1.0,
    "rollbacks": 0,
    "stopped": "",
    "skipped": 0,
}


@dataclass
class OptimConfig:
    """Linear warm-up and cosine decay to `final_rate` of the peak; gradients are clipped by global norm. rule: adamw, or muon
    for matrices (`optimizer.Optimizer`)."""

    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    warmup: int = 50
    final_rate: float = 0.02
    ema: float = 0.995
    rule: str = "adamw"


@dataclass
class LoopConfig:
    """How long a stage runs and how often it looks; after `patience` validations without a better score (0: never) it stops."""

    updates: int = 1000
    validate_every: int = 100
    checkpoint_every: int = 100
    patience: int = 0


def rate_at(update: int, updates: int, optim: OptimConfig) -> float:
    """The learning rate of an update (0-based), a pure function so that a resumed run follows the same curve."""
    if update < optim.warmup:
        return optim.learning_rate * (update + 1) / optim.warmup
    progress = (update - optim.warmup) / max(updates - optim.warmup, 1)
    return optim.learning_rate * (optim.final_rate + (1 - optim.final_rate) * 0.5 * (1 + math.cos(math.pi * progress)))


@torch.no_grad()
def update_ema(average: Policy, policy: Policy, decay: float, update: int) -> None:
    """Move the running average towards the policy; the decay grows from 0 so that early averages forget the start."""
    decay = min(decay, (1 + update) / (10 + update))
    for mean, value in zip(average.state_dict().values(), policy.state_dict().values(), strict=True):
        mean.lerp_(value, 1 - decay)


def train(
    run: RunDirectory,
    title: str,
    policy: Policy,
    config,
    step: Callable[[int, Policy], Iterator[tuple[Tensor, dict]]],
    validate: Callable[[Policy, float], dict],
    live: Live,
    companions: Mapping[str, nn.Module] = MappingProxyType({}),
    retreat: Callable[[Policy], None] = lambda best: None,
) -> Policy:
    """Run the updates and return the average policy with the best validation score (higher is better).

    `config` has `loop`, `optim` and, where the stage has one, `guard`; they are read at every update, as `live` may change
    them. Ctrl-C finishes the update, saves a checkpoint and leaves. Continues from the run directory's checkpoint, bit for bit
    where the machine and the thread count are the same. Beyond a limit of the guard the run stops, or goes back to its best
    policy (and, through `live`, to the knobs it had then, else with half the learning rate). `companions`: modules that `step`
    changes, saved and restored with the rest; `retreat(best)`: what else goes back when the policy does.
    """
    check_settings(config.loop, config.optim)
    live.open(run.path, policy)
    optimizer = Optimizer(policy, config.optim.rule)
    course = _Course(run, live, config, policy, copy.deepcopy(policy), copy.deepcopy(policy), optimizer, companions, retreat)
    state, modules = course.state, course.modules
    if (loaded := run.load_checkpoint()) is not None:
        restore_state(loaded, modules, optimizer, state)
    run.cut_back(state["update"] if loaded is not None else -1)
    began = time.monotonic()
    with Bar(title, config.loop.updates, state["update"]) as bar, StopRequest() as stop:
        if state["update"] == 0:
            course.validate(validate, bar)
        while state["update"] < config.loop.updates:
            asked, knobs = course.turn()
            if asked:
                course.leave(title)
            if course.exhausted:
                break
            metrics = course.apply(step)
            update_ema(course.average, policy, config.optim.ema, state["update"])
            state["update"] += 1
            run.log(state["update"], {**metrics, **knobs, "elapsed_s": round(time.monotonic() - began, 3)})
            bar.advance()
            course.guard_gradients()
            if state["update"] % config.loop.validate_every == 0 or state["update"] == config.loop.updates:
                course.validate(validate, bar, guarded=True)
            if ranks.anywhere(stop.asked):
                course.leave(title)
            if state["update"] % config.loop.checkpoint_every == 0:
                course.save(title)
    save_state(run, modules, optimizer, state)
    return course.best


@dataclass
class _Course:
    """A training under way: its modules and its figures."""

    run: RunDirectory
    live: Live
    config: object
    policy: Policy
    average: Policy
    best: Policy
    optimizer: Optimizer
    companions: Mapping[str, nn.Module]
    retreat: Callable[[Policy], None]
    state: dict = field(default_factory=lambda: dict(FRESH))

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"policy": self.policy, "average": self.average, "best": self.best, **self.companions}

    @property
    def guard(self) -> GuardConfig:
        return getattr(self.config, "guard", None) or NO_LIMITS

    @property
    def exhausted(self) -> bool:
        patience = self.config.loop.patience
        return bool(self.state["stopped"]) or (bool(patience) and self.state["since_best"] >= patience)

    def turn(self) -> tuple[bool, dict[str, object]]:
        """The boundary before an update: knobs move, requests are taken. Returns whether one asks to stop, and the moved knobs'
        values, to be logged."""
        turned, values = self.live.turn(self.state["update"], (self.policy, self.average))
        self.run.patch_version = self.live.version
        if turned.weights:
            self.go_back()
        return turned.stop, {f"knob/{name}": value for name, value in values.items()}

    def apply(self, step) -> dict:
        """One update; without the optimiser's step where the gradient is not finite."""
        optim, update, policy = self.config.optim, self.state["update"], self.policy
        rate = self.state["rate"] * rate_at(update, self.config.loop.updates, optim)
        self.optimizer.set(rate, optim.weight_decay)
        loss, metrics, norm = torch.zeros(()), {}, torch.zeros(())
        self.optimizer.zero_grad()
        finite = True
        for loss, metrics in step(update, policy):
            if loss.requires_grad:  # else the step has accumulated its gradients itself
                auxiliary, load = policy.auxiliary_loss()
                (loss + auxiliary).backward()
                metrics = {**metrics, **load}
            ranks.average_gradients(policy)
            norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), optim.max_grad_norm)
            if finite := bool(torch.isfinite(norm)):
                self.optimizer.step()
            self.optimizer.zero_grad()
            if not finite:
                break
        self.state["skipped"] = 0 if finite else self.state["skipped"] + 1
        own = {"loss": loss.item(), "grad_norm": norm.item(), "learning_rate": rate, "skipped": int(not finite), **metrics}
        return ranks.average(own)

    def guard_gradients(self) -> None:
        """After a few skipped updates in a row, back to the best policy. Raises: InputError where that was done often
        enough."""
        if self.state["skipped"] < SKIPS:
            return
        reason = f"the gradients of {SKIPS} updates in a row were not finite"
        self.state["skipped"] = 0
        self.answer(reason)
        if self.state["stopped"]:
            raise InputError(
                f"{reason}, at update {self.state['update']}; lower the learning rate or the noise. The last checkpoint is kept"
            )

    def validate(self, measure, bar: Bar, guarded: bool = False) -> None:
        """Measure the average policy, and keep it where it is the best so far, unless it lies beyond a limit of the guard,
        which then answers."""
        state = self.state
        with torch.no_grad():
            metrics = measure(self.average.eval(), state["update"] / max(self.config.loop.updates, 1))
        self.run.log(state["update"], {f"val/{name}": value for name, value in metrics.items()})
        watched = metrics.get("watched", metrics["score"])
        reason = self.guard.reason({**metrics, "score": watched}, state["highest"]) if guarded else None
        state["since_best"] += 1
        state["highest"] = max(state["highest"], watched)
        if reason is None and metrics["score"] > state["best_score"]:
            state.update(best_score=metrics["score"], since_best=0, best_update=state["update"])
            self.best.load_state_dict(self.average.state_dict())
            if self.average.settings:
                self.best.settings = self.average.settings
        bar.advance(0, note=f"val {metrics['score']:.4f} (best {state['best_score']:.4f})")
        if reason:
            self.answer(reason)

    def answer(self, reason: str) -> None:
        """What the guard does: stop, or back to the best policy; to the knobs it had where they were patched since, else
        with half the learning rate."""
        update, state = self.state["update"], self.state
        action = "stop" if self.guard.action == "stop" or state["rollbacks"] >= self.guard.rollbacks else "rollback"
        undone = self.live.guard(update, reason, action, state["best_update"])
        self.run.log(update, {"guard": reason, "action": action})
        warnings.warn(
            f"{'stopped' if action == 'stop' else 'rolled back'} by a guard at update {update}: {reason}", stacklevel=3
        )
        if action == "stop":
            state["stopped"] = reason
            return
        self.go_back()
        state["rollbacks"] += 1
        state["rate"] *= 1.0 if undone else 0.5

    def go_back(self) -> None:
        """Policy and average become the best policy so far; the optimiser forgets."""
        for module in (self.policy, self.average):
            module.load_state_dict(self.best.state_dict())
        self.retreat(self.best)
        self.optimizer.forget()

    def save(self, title: str) -> None:
        save_state(self.run, self.modules, self.optimizer, self.state)
        keep_best(self.run, self.best, title.split()[0], self.state["update"])

    def leave(self, title: str) -> NoReturn:
        self.save(title)
        raise KeyboardInterrupt


def check_settings(loop: LoopConfig, optim: OptimConfig) -> None:
    """Refuse what the knobs' bounds do not: settings that are read once, at the start."""
    if optim.warmup < 0:
        raise InputError(f"warmup must not be negative, got {optim.warmup}")
    if loop.updates < 0:
        raise InputError(f"updates must not be negative, got {loop.updates}")


def check_steps(name: str, steps: list[int], policy: Policy) -> None:
    """Refuse numbers of synth steps that the policy was not built for."""
    if not steps or min(steps) < 1 or max(steps) > policy.config.k_max:
        raise InputError(f"{name} must lie in 1..{policy.config.k_max} (the policy's k_max), got {list(steps)}")
