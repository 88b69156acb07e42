"""What a stage keeps of itself in its run directory: the state to go on from, the best policy so far, and its result."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from synthnet.policy import Policy, merged
from synthnet.runs import RunDirectory, ranks
from synthnet.train.optimizer import Optimizer

BEST = "checkpoints/best.safetensors"


def save_state(run: RunDirectory, modules: Mapping[str, nn.Module], optimizer: Optimizer, state: dict) -> None:
    """Write the checkpoint: every module, the optimiser's slots, and the loop's own figures."""
    tensors = {}
    for part, module in modules.items():
        tensors |= {f"{part}/{name}": value for name, value in module.state_dict().items()}
    for index, slots in optimizer.slots.items():
        tensors |= {f"optimizer/{index}/{slot}": torch.as_tensor(value) for slot, value in slots.items()}
    run.save_checkpoint(tensors, state["update"], {**state, "settings": modules["best"].settings})


def restore_state(loaded, modules: Mapping[str, nn.Module], optimizer: Optimizer, state: dict) -> None:
    """Put a loaded checkpoint back where it came from."""
    tensors, _, record = loaded
    for part, module in modules.items():
        prefix = f"{part}/"
        module.load_state_dict({n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)})
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, index, slot = name.split("/")
            slots.setdefault(int(index), {})[slot] = value
    optimizer.slots = slots
    if settings := record.pop("settings"):
        modules["best"].settings = settings
    state.update(record)


def keep_best(run: RunDirectory, best: Policy, stage: str, update: int) -> None:
    """Write the best policy so far, for a run that may never end."""
    if not ranks.first():
        return
    merged(best).save(run.path / BEST, record=_with_stage(run, best, stage, {"stopped_at_update": update}))


def finish(run: RunDirectory, policy: Policy, stage: str, record: dict) -> Path:
    """Write the stage's policy into its run directory, with the stage appended to the policy's own history."""
    policy = merged(policy)
    path = run.path / "policy.safetensors"
    if ranks.first():
        policy.record = _with_stage(run, policy, stage, record)
        policy.save(path)
        (run.path / BEST).unlink(missing_ok=True)
    ranks.together()
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
