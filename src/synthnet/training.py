"""The loop that every policy stage shares: updates, schedule, EMA, validation, checkpoints, exact resume, early stop.

A stage gives a `step` and a `validate(policy, share of updates done)` (-> metrics with `score`); what differs between stages
is in those two functions alone. `step(update, policy)` yields (loss, metrics) once per optimiser step: more than once where a
stage goes over the same samples again; a loss without a gradient says that the step has accumulated the gradients itself.
"""

import copy
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from synthnet.errors import InputError
from synthnet.guards import GuardConfig
from synthnet.interrupt import StopRequest
from synthnet.policy import Policy
from synthnet.progress import Bar
from synthnet.runs import RunDirectory
from synthnet.trainable import merged

BEST = "checkpoints/best.safetensors"


@dataclass
class OptimConfig:
    """AdamW with linear warm-up and cosine decay to `final_rate` of the peak; gradients are clipped by global norm."""

    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    warmup: int = 50
    final_rate: float = 0.02
    ema: float = 0.995


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
    loop: LoopConfig,
    optim: OptimConfig,
    step: Callable[[int, Policy], Iterator[tuple[Tensor, dict]]],
    validate: Callable[[Policy, float], dict],
    guard: GuardConfig | None = None,
    companions: Mapping[str, nn.Module] = MappingProxyType({}),
) -> Policy:
    """Run the updates and return the average policy with the best validation score (higher is better).

    Ctrl-C finishes the update, saves a checkpoint and leaves. Continues from the run directory's checkpoint, bit for bit
    where the machine and the thread count are the same. Beyond a limit of `guard` the run stops, or goes back to its best
    policy with half the learning rate. `companions`: policies that `step` changes, saved, restored and taken back with the
    rest.
    """
    check_settings(loop, optim)
    average = copy.deepcopy(policy)
    best = copy.deepcopy(policy)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=optim.learning_rate, weight_decay=optim.weight_decay)
    state = {"update": 0, "best_score": -math.inf, "highest": -math.inf, "since_best": 0}
    state |= {"rate": 1.0, "rollbacks": 0, "stopped": ""}
    modules = {"policy": policy, "average": average, "best": best, **companions}
    if (loaded := run.load_checkpoint()) is not None:
        _restore(loaded, modules, optimizer, state)
    run.cut_back(state["update"] if loaded is not None else -1)
    began = time.monotonic()
    with Bar(title, loop.updates, state["update"]) as bar, StopRequest() as stop:
        if state["update"] == 0:
            _validate(run, loop, validate, average, best, state, bar, None)
        while state["update"] < loop.updates and not _exhausted(state, loop):
            update = state["update"]
            metrics = _apply(step, update, policy, optimizer, loop, optim, state["rate"])
            update_ema(average, policy, optim.ema, update)
            state["update"] = update + 1
            run.log(state["update"], {**metrics, "elapsed_s": round(time.monotonic() - began, 3)})
            bar.advance()
            due = state["update"] % loop.validate_every == 0 or state["update"] == loop.updates
            if due and (reason := _validate(run, loop, validate, average, best, state, bar, guard)):
                _retreat(run, guard, reason, modules, optimizer, state)
            if stop.asked or state["update"] % loop.checkpoint_every == 0:
                _save(run, modules, optimizer, state)
                stopped = {"stopped_at_update": state["update"]}
                merged(best).save(run.path / BEST, record=_with_stage(run, best, title.split()[0], stopped))
            if stop.asked:
                raise KeyboardInterrupt
    _save(run, modules, optimizer, state)
    return best


def check_settings(loop: LoopConfig, optim: OptimConfig) -> None:
    """Refuse settings that cannot work, before any work is done."""
    for name in ("validate_every", "checkpoint_every"):
        if getattr(loop, name) < 1:
            raise InputError(f"{name} must be at least 1, got {getattr(loop, name)}")
    if optim.warmup < 0:
        raise InputError(f"warmup must not be negative, got {optim.warmup}")
    if loop.updates < 0 or loop.patience < 0:
        raise InputError(f"updates and patience must not be negative, got {loop.updates} and {loop.patience}")
    if not optim.learning_rate > 0 or not optim.max_grad_norm > 0 or not 0 <= optim.ema < 1:
        raise InputError(f"learning_rate and max_grad_norm must be positive and ema in [0, 1), got {optim}")


def check_steps(name: str, steps: list[int], policy: Policy) -> None:
    """Refuse numbers of synth steps that the policy was not built for."""
    if not steps or min(steps) < 1 or max(steps) > policy.config.k_max:
        raise InputError(f"{name} must lie in 1..{policy.config.k_max} (the policy's k_max), got {list(steps)}")


def _exhausted(state: dict, loop: LoopConfig) -> bool:
    return bool(state["stopped"]) or (bool(loop.patience) and state["since_best"] >= loop.patience)


def _retreat(run: RunDirectory, guard: GuardConfig, reason: str, modules: dict[str, nn.Module], optimizer, state: dict) -> None:
    """Back to the best policy with half the learning rate, or, where that is not asked for or was done often enough, stop."""
    stop = guard.action == "stop" or state["rollbacks"] >= guard.rollbacks
    run.log(state["update"], {"guard": reason, "action": "stop" if stop else "rollback"})
    if stop:
        warnings.warn(f"stopped by a guard at update {state['update']}: {reason}", stacklevel=3)
        state["stopped"] = reason
        return
    warnings.warn(f"rolled back by a guard at update {state['update']}: {reason}", stacklevel=3)
    for module in modules.values():
        module.load_state_dict(modules["best"].state_dict())
    optimizer.state.clear()
    state["rate"], state["rollbacks"] = state["rate"] / 2, state["rollbacks"] + 1


def _apply(step, update: int, policy: Policy, optimizer, loop: LoopConfig, optim: OptimConfig, rate: float) -> dict:
    for group in optimizer.param_groups:
        group["lr"] = rate * rate_at(update, loop.updates, optim)
    loss, metrics, norm = torch.zeros(()), {}, torch.zeros(())
    optimizer.zero_grad(set_to_none=True)
    for loss, metrics in step(update, policy):
        if loss.requires_grad:  # else the step has accumulated its gradients itself
            auxiliary, load = policy.auxiliary_loss()
            (loss + auxiliary).backward()
            metrics = {**metrics, **load}
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), optim.max_grad_norm)
        if not torch.isfinite(norm):
            raise InputError(
                f"the gradient of update {update + 1} is not finite; lower the learning rate or the noise. "
                "The last checkpoint is kept"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"loss": loss.item(), "grad_norm": norm.item(), "learning_rate": optimizer.param_groups[0]["lr"], **metrics}


def _validate(
    run: RunDirectory,
    loop: LoopConfig,
    validate,
    average: Policy,
    best: Policy,
    state: dict,
    bar: Bar,
    guard: GuardConfig | None,
) -> str | None:
    """Measure the average policy, and keep it where it is the best so far; returns why it lies beyond a limit of the guard, in
    which case it is not kept."""
    with torch.no_grad():
        metrics = validate(average.eval(), state["update"] / max(loop.updates, 1))
    run.log(state["update"], {f"val/{name}": value for name, value in metrics.items()})
    watched = metrics.get("watched", metrics["score"])
    reason = guard.reason({**metrics, "score": watched}, state["highest"]) if guard else None
    state["since_best"] += 1
    state["highest"] = max(state["highest"], watched)
    if reason is None and metrics["score"] > state["best_score"]:
        state.update(best_score=metrics["score"], since_best=0, best_update=state["update"])
        best.load_state_dict(average.state_dict())
    bar.advance(0, note=f"val {metrics['score']:.4f} (best {state['best_score']:.4f})")
    return reason


def _save(run: RunDirectory, modules: Mapping[str, nn.Module], optimizer, state: dict) -> None:
    tensors = {}
    for part, module in modules.items():
        tensors |= {f"{part}/{name}": value for name, value in module.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{slot}": torch.as_tensor(value) for slot, value in slots.items()}
    run.save_checkpoint(tensors, state["update"], state)


def _restore(loaded, modules: Mapping[str, nn.Module], optimizer, state: dict) -> None:
    tensors, _, record = loaded
    for part, module in modules.items():
        prefix = f"{part}/"
        module.load_state_dict({n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)})
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, index, slot = name.split("/")
            slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    state.update(record)


def finish(run: RunDirectory, policy: Policy, stage: str, record: dict) -> Path:
    """Write the stage's policy into its run directory, with the stage appended to the policy's own history."""
    policy = merged(policy)
    policy.record = _with_stage(run, policy, stage, record)
    path = run.path / "policy.safetensors"
    policy.save(path)
    (run.path / BEST).unlink(missing_ok=True)
    return path


def policy_of_run(path: Path) -> Path:
    """The policy file of a run directory: the stage's result, or the best so far of a run that was stopped."""
    done = path / "policy.safetensors"
    return done if done.exists() or not (path / BEST).exists() else path / BEST


def _with_stage(run: RunDirectory, policy: Policy, stage: str, record: dict) -> dict:
    """The policy's record with this run's stage at the end of its history."""
    made = json.loads((run.path / "run.json").read_text())
    entry = {"stage": stage, "command": made["command"], "commit": made["commit"], **record}
    return {**policy.record, "stages": [*policy.record.get("stages", []), entry]}
