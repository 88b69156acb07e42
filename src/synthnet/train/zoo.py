"""The zoo: many independent training runs, each kept at its start and several later states.

A zoo folder is a run directory with shards (`states-00000.safetensors`: tensor `states` [run state weights]) and
`index.jsonl`, one line per run {run, purpose, seed, shard, row, epochs, val_accuracy}. A shard is written whole or not at
all, so a killed build resumes at the first missing shard. Runs with purpose `heldout` are never trained on.
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from synthnet.device import choose_device
from synthnet.engine import Training, score, train_population
from synthnet.errors import InputError
from synthnet.files import sha256_of, write_atomic, write_safetensors
from synthnet.nets import Arch, WeightSpec, read_weights, recognise
from synthnet.progress import Bar
from synthnet.runs import RunDirectory, Setup, WorkersConfig, run_parts
from synthnet.settings import SHARE, check_settings, setting
from synthnet.tasks import Task, build_task, is_own, recipe_of, strong_recipe


@dataclass
class ZooConfig(WorkersConfig):
    """Settings of `synthnet zoo`; its parts are shards."""

    runs: int = setting(1024, "to learn from", (1, 1e7))
    heldout: int = setting(256, "never trained on", (0, 1e7))
    states: list[float] = setting([0.0, 0.025, 0.1, 0.25, 0.5, 1.0], "which are kept, as shares of the recipe's epochs", SHARE)
    shard: int = setting(128, "runs a file", (1, 1e6))
    strong: bool = setting(False, "trained by the recipe that a search on val found, each in its own order")
    per_run_order: bool = setting(False, "every run sees minibatches in an order of its own")


@dataclass(frozen=True)
class Zoo:
    """A zoo on disk, opened for reading."""

    path: Path
    arch: Arch
    data: dict | None
    index: tuple[dict, ...]
    checksums: dict[str, str]
    task: str | None

    @classmethod
    def open(cls, path: str | Path) -> "Zoo":
        """Raises: InputError when the folder is not a finished zoo."""
        path = Path(path)
        if not (path / "zoo.json").exists():
            raise InputError(
                f"{path} is not a finished zoo (no zoo.json): build it, or go on with it: synthnet zoo task=TASK run_dir={path}"
            )
        try:
            record = json.loads((path / "zoo.json").read_text())
            index = tuple(json.loads(line) for line in (path / "index.jsonl").read_text().splitlines())
            if any(
                Path(row["shard"]).name != row["shard"] or not {"purpose", "seed", "row", "epochs"} <= set(row) for row in index
            ):
                raise InputError(f"{path}/index.jsonl names a shard outside the zoo, or is no index")
            checksums = dict(record.get("sha256", {}))
            return cls(path, Arch.from_dict(record["arch"]), record.get("data"), index, checksums, record.get("task"))
        except InputError:
            raise
        except (OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise InputError(f"{path} is a damaged zoo: {error!r}; build it again") from error

    def states(self, purpose: str = "zoo", n_runs: int | None = None) -> Tensor:
        """Weights [run state weights] of the first `n_runs` runs of one purpose, in order of seed.

        Raises: InputError when there are fewer, or when runs differ in their number of states.
        """
        rows = [row for row in self.index if row["purpose"] == purpose]
        if n_runs is not None and n_runs > len(rows):
            raise InputError(f"{self.path} has {len(rows)} runs of purpose {purpose}, asked for {n_runs}")
        rows = rows[:n_runs]
        if not rows:
            raise InputError(f"{self.path} has no runs of purpose {purpose}")
        if len({len(row["epochs"]) for row in rows}) > 1:
            raise InputError(f"{self.path}: runs have different numbers of states; import runs of equal length")
        shards = {}
        for row in rows:
            shards.setdefault(row["shard"], []).append(row["row"])
        parts = []
        for shard, wanted in shards.items():
            try:
                if shard in self.checksums and sha256_of(self.path / shard) != self.checksums[shard]:
                    raise InputError(f"{self.path / shard} is damaged (its checksum differs); delete it and build again")
                with safe_open(self.path / shard, framework="pt") as file:
                    parts.append(file.get_tensor("states")[wanted])
            except (OSError, SafetensorError, IndexError) as error:
                raise InputError(f"{self.path / shard} is missing or damaged ({error}); delete it and build again") from error
        return torch.cat(parts)

    def trained(self, n_runs: int) -> Tensor:
        """Clean weights [net weights] of the first `n_runs` runs trained for the zoo, or of all where there are fewer."""
        return self.states("zoo", min(n_runs, len(self.seeds("zoo"))))[:, -1]

    def seeds(self, purpose: str = "zoo") -> list[int]:
        return [row["seed"] for row in self.index if row["purpose"] == purpose]


def build_zoo(task: Task, config: ZooConfig, setup: Setup) -> Path:
    """Train the zoo of a task into its run directory, that of several members into a folder for each; go on where an earlier
    build was stopped."""
    for member in task.members:
        _build_zoo(member, config, replace(setup, folder=member_path(task, member, setup.folder)))
    return setup.folder


def member_path(task: Task, member: Task, folder: str | Path) -> Path:
    """The folder of a member's zoo within that of its family or joint task."""
    return Path(folder) / (member.name if task.joint else member.arch.label if task.family else "")


def check_zoo(config: ZooConfig) -> None:
    """Refuse settings that no zoo can be built with."""
    check_settings("zoo", config)
    if (
        len(config.states) < 2
        or config.states[0] != 0
        or config.states[-1] != 1
        or list(config.states) != sorted(config.states)
    ):
        raise InputError(f"zoo.states must rise from 0 to 1, got {list(config.states)}")


def _epochs(task: Task, config: ZooConfig) -> list[int]:
    """After which epochs a state is kept."""
    return sorted({round(share * _training(task, config).recipe.epochs) for share in config.states})


def _training(task: Task, config: ZooConfig) -> Training:
    if config.strong:
        return strong_recipe(task, done=True).training
    return Training(recipe_of(task), per_run_order=config.per_run_order)


def _jobs(config: ZooConfig) -> list[tuple[str, list[int]]]:
    """The purpose and the seeds of each shard."""
    return [
        (purpose, list(range(first, min(first + config.shard, n))))
        for purpose, n in (("heldout", config.heldout), ("zoo", config.runs))
        for first in range(0, n, config.shard)
    ]


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"states-{number:05d}.safetensors"


def _build_zoo(task: Task, config: ZooConfig, setup: Setup) -> None:
    check_zoo(config)
    jobs = _jobs(config)
    with RunDirectory(setup) as run, Bar(f"zoo {task.arch.label}", config.runs + config.heldout) as bar:
        seeds_of = {shard_path(run.path, number): seeds for number, (_, seeds) in enumerate(jobs)}
        done = lambda shard: bar.advance(len(seeds_of[shard]))  # noqa: E731
        if config.executor is None:
            for number, shard in enumerate(seeds_of):
                if not shard.exists():
                    train_shard(task, config, number, shard, setup.device)
                done(shard)
        else:
            own = setup.given.get("task")
            code = ["--code", own] if is_own(own) else []
            commands = {shard: ["shard", str(run.path), str(number), *code] for number, shard in enumerate(seeds_of)}
            run_parts(commands, config, done)
        _write_index(run.path, task.arch, task, jobs, _epochs(task, config))


def train_shard(task: Task, config: ZooConfig, number: int, shard: Path, device: str) -> None:
    """Train and write one shard of a zoo. Raises: InputError where the zoo has no such shard."""
    jobs, device = _jobs(config), choose_device(device)
    if not 0 <= number < len(jobs):
        raise InputError(f"the zoo has shards 0 to {len(jobs) - 1}, asked for {number}")
    (purpose, seeds), epochs = jobs[number], _epochs(task, config)
    training = _training(task, config)
    inputs, labels = (part.to(device) for part in task.examples("train"))
    start = task.draw_start(purpose, seeds).to(device)
    states = train_population(task.network, start, inputs, labels, training, epochs, run_ids=seeds)
    val = [part.to(device) for part in task.examples("val")]
    accuracies, _ = score(task.network, states[:, -1], *val)
    payload = {"states": states, "val_accuracy": accuracies}
    write_safetensors(shard, payload, {"seeds": json.dumps(seeds), "purpose": purpose})


def _write_index(path: Path, arch: Arch, task: Task | None, jobs: list[tuple[str, list[int]]], epochs: list[int]) -> None:
    lines, run = [], 0
    for number, (purpose, seeds) in enumerate(jobs):
        with safe_open(shard_path(path, number), framework="pt") as file:
            accuracies = file.get_tensor("val_accuracy").tolist() if "val_accuracy" in file.keys() else [None] * len(seeds)  # noqa: SIM118
        for row, (seed, accuracy) in enumerate(zip(seeds, accuracies, strict=True)):
            entry = {"run": run, "purpose": purpose, "seed": seed, "shard": shard_path(path, number).name, "row": row}
            lines.append(json.dumps({**entry, "epochs": epochs, "val_accuracy": accuracy}))
            run += 1
    sums = {shard.name: sha256_of(shard) for shard in (shard_path(path, number) for number in range(len(jobs)))}
    names = {"task": task.name if task else None, "data": task.data_key if task else None}
    record = {"arch": arch.to_dict(), **names, "sha256": sums}
    write_atomic(path / "index.jsonl", "\n".join(lines) + "\n")
    write_atomic(path / "zoo.json", json.dumps(record) + "\n")


def import_zoo(folder: str | Path, out: str | Path, task: str | None = None) -> Zoo:
    """Take a user's own runs: each subfolder (or the folder itself) is a run, its files in order of the number in their names.

    Files are `.safetensors` or state dicts saved by torch (`.pth`, `.pt`, read with weights_only). The last tenth of the
    runs, at least one where there are two, is held out.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of runs")
    runs = [
        found for sub in [folder, *sorted(p for p in folder.iterdir() if p.is_dir())] if len(found := _state_files(sub)) > 1
    ]
    if not runs:
        raise InputError(
            f"{folder} holds no runs: expected at least two .safetensors or .pth files per run, in it or in subfolders"
        )
    if len({len(files) for files in runs}) > 1:
        raise InputError(
            f"{folder}: runs have {sorted({len(files) for files in runs})} states; expected the same number in each"
        )
    first = _read_state(runs[0][0])
    arch = build_task(task).arch if task else recognise(WeightSpec.of_tensors(first))
    if arch is None:
        raise InputError(f"{runs[0][0]}: names and shapes do not tell the architecture; pass task=NAME")
    spec, states = arch.spec(), []
    for files in runs:
        tensors = [_read_state(file) for file in files]
        for file, state in zip(files, tensors, strict=True):
            if wrong := spec.differences(WeightSpec.of_tensors(state)):
                raise InputError(f"{file} is not {arch}: {'; '.join(wrong)}")
        states.append(torch.stack([spec.flatten(state) for state in tensors]))
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder; pass run_dir=PATH of a new one")
    out.mkdir(parents=True, exist_ok=True)
    n_heldout = max(len(runs) // 10, 1) if len(runs) > 1 else 0
    jobs = [("zoo", list(range(len(runs) - n_heldout)))] + ([("heldout", list(range(n_heldout)))] if n_heldout else [])
    parts = torch.stack(states).split([len(seeds) for _, seeds in jobs])
    for number, part in enumerate(parts):
        write_safetensors(shard_path(out, number), {"states": part})
    _write_index(out, arch, None, jobs, list(range(len(runs[0]))))
    return Zoo.open(out)


def _state_files(folder: Path) -> list[Path]:
    files = [p for p in folder.iterdir() if p.suffix in (".safetensors", ".pth", ".pt")]
    numbers = {path: [int(n) for n in re.findall(r"\d+", path.stem)] for path in files}
    if len({len(found) for found in numbers.values()}) > 1 or [] in numbers.values():
        names = ", ".join(sorted(path.name for path in files)[:4])
        raise InputError(f"{folder}: expected one numbering in all names (weights_epoch_0, weights_epoch_1, …), got {names}")
    return sorted(files, key=lambda path: numbers[path])


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_weights(path).tensors
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds for foreign files; all mean the same here
        raise InputError(f"{path} is not a state dict that torch.load(weights_only=True) reads: {error}") from error
    plain = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not plain or not all(isinstance(value, Tensor) and value.layout == torch.strided for value in state.values()):
        raise InputError(f"{path} is not a plain state dict (dense tensor by name)")
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise InputError(f"{path} holds NaN or infinite values; expected finite weights")
    return state
