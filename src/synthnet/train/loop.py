"""The loop that every policy stage shares: updates, schedule, average, validation, checkpoints, exact resume, early stop."""

import copy
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

import torch
from torch import Tensor, nn

from synthnet.errors import InputError
from synthnet.policy import Policy
from synthnet.progress import Bar, StopRequest
from synthnet.runs import Live, Setup, open_run, ranks
from synthnet.settings import OFTEN, SHARE, setting
from synthnet.train.guards import GuardConfig
from synthnet.train.optimizer import RULES, Optimizer
from synthnet.train.snapshot import finish, keep_best, restore_state, save_state

STEPS = (1, 64)  # bounds of numbers of synth steps
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
    """Linear warm-up and cosine decay to `final_rate` of the peak; gradients are clipped by global norm."""

    learning_rate: float = setting(1e-3, "its peak", (1e-9, 1.0), hot=True)
    weight_decay: float = setting(1e-4, "decoupled, times the learning rate", (0, 1.0), hot=True)
    max_grad_norm: float = setting(1.0, "where gradients are clipped", (1e-6, 1e6), hot=True)
    warmup: int = setting(50, "of the learning rate", (0, 1e9), unit="updates")
    final_rate: float = setting(0.02, "what is left of the peak at the end", SHARE)
    ema: float = setting(
        0.995, "decay of the average of the policy, which is what is validated and kept", (0, 0.99999), hot=True
    )
    rule: str = setting("adamw", "muon: of matrices, AdamW for the rest", choices=RULES)


@dataclass
class LoopConfig:
    """How long a stage runs and how often it looks."""

    updates: int = setting(1000, "how many", (0, 1e9))
    validate_every: int = setting(100, "between validations", OFTEN, unit="updates", hot=True)
    checkpoint_every: int = setting(100, "between checkpoints", OFTEN, unit="updates", hot=True)
    patience: int = setting(0, "validations without a better score before it stops (0: never)", (0, 1e9), hot=True)


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


class Run:
    """A stage's training under way, in its run directory: `for update in run.updates(): … run.step(loss, metrics)`.

    `config` has `loop`, `optim` and, where the stage has one, `guard`; they are read at every update, as patches may change
    them. `validate(policy, share of updates done)` gives metrics with `score`, higher is better. `sections`: config group ->
    object whose hot knobs a patch may change; `check` refuses values that do not go together. `companions`: modules that the
    stage changes, saved and restored with the rest; `retreat(best)`: what else goes back when the policy does.

    Ctrl-C finishes the update, saves a checkpoint and leaves. Continues from the run directory's checkpoint, bit for bit where
    the machine and the thread count are the same. Beyond a limit of the guard the run stops, or goes back to its best policy
    (and to the knobs it had then, else with half the learning rate).
    """

    def __init__(
        self,
        setup: Setup,
        policy: Policy,
        config,
        validate: Callable[[Policy, float], dict],
        sections: Mapping[str, object],
        check: Callable[[], None] = lambda: None,
        companions: Mapping[str, nn.Module] = MappingProxyType({}),
        retreat: Callable[[Policy], None] = lambda best: None,
    ):
        self.setup, self.policy, self.config, self.measure, self.retreat = setup, policy, config, validate, retreat
        self.live = Live(sections, setup.lab.schedules if setup.lab else {}, check)
        self.companions, self.state, self._metrics = companions, dict(FRESH), {}

    def __enter__(self) -> "Run":
        self.directory = open_run(self.setup)
        try:
            self._open()
        except BaseException:
            self.directory.__exit__(*sys.exc_info())
            raise
        return self

    def _open(self) -> None:
        self.live.open(self.directory.path, self.policy)
        self.optimizer = Optimizer(self.policy, self.config.optim.rule)
        self.average, self.best = copy.deepcopy(self.policy), copy.deepcopy(self.policy)
        loaded = self.directory.load_checkpoint()
        self._fresh = loaded is None
        if loaded is not None:
            restore_state(loaded, self.modules, self.optimizer, self.state)
        self.directory.cut_back(self.state["update"] if loaded is not None else -1)
        self._bar = Bar(f"{self.setup.stage} {self.setup.task}", self.config.loop.updates, self.state["update"])
        self._stop = StopRequest()
        self._bar.__enter__()
        self._stop.__enter__()

    def __exit__(self, *error) -> None:
        self._stop.__exit__(*error)
        self._bar.__exit__(*error)
        self.directory.__exit__(*error)

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"policy": self.policy, "average": self.average, "best": self.best, **self.companions}

    def updates(self) -> Iterator[int]:
        """The numbers of the updates that are left, from 0; around each, all that every stage does: knobs, average, log,
        guards, validation, checkpoint."""
        state, loop, began = self.state, self.config.loop, time.monotonic()
        if self._fresh:
            self._validate()
        while state["update"] < loop.updates:
            asked, knobs = self._turn()
            if asked:
                self._leave()
            if state["stopped"] or (loop.patience and state["since_best"] >= loop.patience):
                break
            self._begin()
            yield state["update"]
            metrics = self._end()
            update_ema(self.average, self.policy, self.config.optim.ema, state["update"])
            state["update"] += 1
            self.directory.log(state["update"], {**metrics, **knobs, "elapsed_s": round(time.monotonic() - began, 3)})
            self._bar.advance()
            self._guard_gradients()
            if state["update"] % loop.validate_every == 0 or state["update"] == loop.updates:
                self._validate(guarded=True)
            if ranks.anywhere(self._stop.asked):
                self._leave()
            if state["update"] % loop.checkpoint_every == 0:
                self._save()
        save_state(self.directory, self.modules, self.optimizer, state)

    def step(self, loss: Tensor, metrics: dict) -> bool:
        """One step of the optimiser down a loss; several may belong to one update, whose log shows the last. Returns False, and
        takes none, where the gradient is not finite: then the update is over."""
        auxiliary, load = self.policy.auxiliary_loss()
        (loss + auxiliary).backward()
        ranks.average_gradients(self.policy)
        ranks.average_buffers(self.policy, "usage")  # of experts
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.optim.max_grad_norm)
        if finite := bool(torch.isfinite(norm)):
            self.optimizer.step()
        self.optimizer.zero_grad()
        figures = {"loss": loss.item(), "grad_norm": norm.item(), "skipped": int(not finite)}
        self._metrics = {**self._metrics, **figures, **metrics, **load}
        return finite

    def finish(self, record: dict) -> Path:
        """Write the best policy with this stage at the end of its history; returns its path."""
        done = {"seed": self.setup.seed, "updates": self.state["update"], **record}
        return finish(self.directory, self.best, self.setup.stage, done)

    def _turn(self) -> tuple[bool, dict[str, object]]:
        """The boundary before an update: knobs move, requests are taken. Returns whether one asks to stop, and the moved knobs'
        values, to be logged."""
        turned, values = self.live.turn(self.state["update"], (self.policy, self.average))
        self.directory.patch_version = self.live.version
        if turned.weights:
            self._go_back()
        return turned.stop, {f"knob/{name}": value for name, value in values.items()}

    def _begin(self) -> None:
        optim = self.config.optim
        rate = self.state["rate"] * rate_at(self.state["update"], self.config.loop.updates, optim)
        self.optimizer.set(rate, optim.weight_decay)
        self.optimizer.zero_grad()
        self._metrics = {"loss": 0.0, "grad_norm": 0.0, "learning_rate": rate, "skipped": 0}

    def _end(self) -> dict:
        self.state["skipped"] = self.state["skipped"] + 1 if self._metrics["skipped"] else 0
        return ranks.average(self._metrics)

    def _guard_gradients(self) -> None:
        """After a few skipped updates in a row, back to the best policy. Raises: InputError where that was done often
        enough."""
        if self.state["skipped"] < SKIPS:
            return
        reason = f"the gradients of {SKIPS} updates in a row were not finite"
        self.state["skipped"] = 0
        self._answer(reason)
        if self.state["stopped"]:
            raise InputError(
                f"{reason}, at update {self.state['update']}; lower the learning rate or the noise. The last checkpoint is kept"
            )

    def _validate(self, guarded: bool = False) -> None:
        """Measure the average policy, and keep it where it is the best so far, unless it lies beyond a limit of the guard,
        which then answers."""
        state, guard = self.state, getattr(self.config, "guard", None) or NO_LIMITS
        with torch.no_grad():
            metrics = self.measure(self.average.eval(), state["update"] / max(self.config.loop.updates, 1))
        self.directory.log(state["update"], {f"val/{name}": value for name, value in metrics.items()})
        watched = metrics.get("watched", metrics["score"])
        reason = guard.reason({**metrics, "score": watched}, state["highest"]) if guarded else None
        state["since_best"] += 1
        state["highest"] = max(state["highest"], watched)
        if reason is None and metrics["score"] > state["best_score"]:
            state.update(best_score=metrics["score"], since_best=0, best_update=state["update"])
            self.best.load_state_dict(self.average.state_dict())
            if self.average.settings:
                self.best.settings = self.average.settings
        self._bar.advance(0, note=f"val {metrics['score']:.4f} (best {state['best_score']:.4f})")
        if reason:
            self._answer(reason)

    def _answer(self, reason: str) -> None:
        """What the guard does: stop, or back to the best policy; to the knobs it had where they were patched since, else
        with half the learning rate."""
        update, state, guard = self.state["update"], self.state, getattr(self.config, "guard", None) or NO_LIMITS
        action = "stop" if guard.action == "stop" or state["rollbacks"] >= guard.rollbacks else "rollback"
        undone = self.live.guard(update, reason, action, state["best_update"])
        self.directory.log(update, {"guard": reason, "action": action})
        warnings.warn(
            f"{'stopped' if action == 'stop' else 'rolled back'} by a guard at update {update}: {reason}", stacklevel=3
        )
        if action == "stop":
            state["stopped"] = reason
            return
        self._go_back()
        state["rollbacks"] += 1
        state["rate"] *= 1.0 if undone else 0.5

    def _go_back(self) -> None:
        """Policy and average become the best policy so far; the optimiser forgets."""
        for module in (self.policy, self.average):
            module.load_state_dict(self.best.state_dict())
        self.retreat(self.best)
        self.optimizer.forget()

    def _save(self) -> None:
        save_state(self.directory, self.modules, self.optimizer, self.state)
        keep_best(self.directory, self.best, self.setup.stage, self.state["update"])

    def _leave(self) -> NoReturn:
        self._save()
        raise KeyboardInterrupt


def check_steps(name: str, steps: list[int], policy: Policy) -> None:
    """Refuse numbers of synth steps that the policy was not built for."""
    if not steps or min(steps) < 1 or max(steps) > policy.config.k_max:
        raise InputError(f"{name} must lie in 1..{policy.config.k_max} (the policy's k_max), got {list(steps)}")
