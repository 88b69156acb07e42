"""`synthnet audit`: a policy and a zoo in, one report.json, one page and one table out."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from synthnet.audit.audit import CONTROL_NETS, HONEST, OURS, TRAINING, Source, audit, controls, sources
from synthnet.audit.ddpm import DdpmConfig
from synthnet.audit.evaluation import task_of
from synthnet.audit.measures import Field, Measured, measure
from synthnet.audit.page import SET_COLUMNS, identity_rows, page, set_rows, verdict_rows
from synthnet.audit.verdicts import REFERENCES, judge
from synthnet.bundled import policy_path
from synthnet.console import figure_library, table
from synthnet.device import choose_device
from synthnet.errors import InputError
from synthnet.files import lock, make_folder, sha256_of, write_atomic
from synthnet.policy import Policy, choose_steps, read_policy, synthesize_flat
from synthnet.progress import Bar
from synthnet.runs import WorkersConfig, run_parts
from synthnet.settings import check_settings
from synthnet.tasks import Task, check_same_data, data_settings
from synthnet.train import Zoo


@dataclass(frozen=True)
class Case:
    """What is audited: a policy against a zoo of its own recipe, and further policies as controls; `names`: the policy and
    these as the report names them."""

    names: tuple[str, Mapping[str, str]]
    policy: Policy
    others: Mapping[str, Policy]
    zoo: Zoo
    task: Task
    n_training: int
    n_heldout: int
    key: str  # of all that decides what is measured

    @classmethod
    def open(
        cls,
        policy: str,
        zoo_dir: str,
        n_training: int,
        n_heldout: int,
        also: Mapping[str, str],
        task_name: str | None,
        device: str,
    ) -> "Case":
        """Raises: InputError where the zoo is of another architecture, or on another split than a policy."""
        if n_training < 2 or n_heldout < 2:
            raise InputError(f"an audit needs at least 2 training and 2 held-out nets, got {n_training} and {n_heldout}")
        paths = {name: policy_path(path) for name, path in also.items()}
        trained, zoo = read_policy(policy_path(policy), choose_device(device)), Zoo.open(zoo_dir)
        others = {name: read_policy(path, choose_device(device)) for name, path in paths.items()}
        settings = data_settings(zoo.data)
        task = task_of(zoo.arch, task_name, zoo.task or trained.record.get("task"), **settings)
        check_same_data(zoo.data, task, str(zoo.path))
        if task.objective.kind != "classes":
            raise InputError(f"an audit compares which examples nets classify wrongly, and {task.name} has no classes")
        for loaded in (trained, *others.values()):
            loaded.layout(task.network)
            check_same_data(loaded.record.get("data"), task, "a policy")
        files = [policy_path(policy), zoo.path / "zoo.json", *paths.values()]
        key = [version("synthnet"), trained.device.type, task.name, n_training, n_heldout, *paths, *map(sha256_of, files)]
        digest = sha256(json.dumps(key).encode()).hexdigest()[:12]
        return cls((policy, dict(also)), trained, others, zoo, task, n_training, n_heldout, digest)

    @property
    def judged(self) -> int:
        return choose_steps(self.policy, None)

    @cached_property
    def field(self) -> Field:
        return Field.of_zoo(self.task, self.zoo, self.n_training, self.n_heldout)

    @cached_property
    def sources(self) -> dict[str, Source]:
        """Every set of nets that is measured. Raises: InputError where two would have one name."""
        made = controls(self.field, ddpm=DdpmConfig())
        if taken := sorted(set(self.others) & {*made, *REFERENCES}):
            raise InputError(f"--also: the name {taken[0]!r} is taken; choose another")
        for name, policy in self.others.items():
            made[name] = Source(lambda policy=policy: self.sequences(policy, choose_steps(policy, None))[:CONTROL_NETS, -1])
        return sources(self.field, lambda: self.sequences(self.policy, self.judged)[:, -1], made)

    def sequences(self, policy: Policy, n_steps: int) -> Tensor:
        """The weight states [net step weights] from the held-out starts on."""
        return synthesize_flat(policy, self.field.starts.to(policy.device), n_steps, self.field.network).cpu()

    def folder(self, out: Path) -> Path:
        """Where measured sets lie until the report is written."""
        return out / f"measured-{self.key}"

    def files(self, out: Path) -> dict[str, Path]:
        """The file of each measured set."""
        return {name: self.folder(out) / f"{number:02d}.safetensors" for number, name in enumerate(self.sources)}

    def measure(self, name: str, path: Path, tick: Callable[[], None] = lambda: None) -> None:
        source = self.sources[name]
        make_folder(path.parent)
        measure(self.field, source.make(), source.own, tick).write(path)


def audit_part(case: Case, out: Path, number: int) -> Path:
    """What the workers of an audit's executor run: measure one set. Raises: InputError where there is none of that number."""
    files = list(case.files(out).items())
    if not 0 <= number < len(files):
        raise InputError(f"the audit has sets 0 to {len(files) - 1}, asked for {number}")
    case.measure(*files[number])
    return files[number][1]


def audit_policy(case: Case, out: Path, steps: list[int] | None, workers: WorkersConfig, command: list[str]) -> dict:
    """Audit a policy; writes report.json and report.html into `out` and returns the report. Sets are measured one by one, or
    by workers that run `command` with the number of a set; what was measured before an audit was killed is not measured again.

    Raises: InputError where the zoo has too few runs or two sets have one name.
    """
    began = time.monotonic()
    figure_library()
    check_settings("audit", workers)
    chosen = sorted({*(choose_steps(case.policy, k) for k in steps or [1, 2, 4]), case.judged})
    files = case.files(out)
    size = {HONEST: case.n_heldout, OURS: case.n_heldout, TRAINING: min(CONTROL_NETS, case.n_training)}
    sizes = {path: size.get(name, min(CONTROL_NETS, case.n_heldout)) for name, path in files.items()}
    with _alone(case.folder(out)), Bar("audit", sum(sizes.values())) as bar:
        if workers.executor is None:
            for name, path in files.items():
                bar.advance(sizes[path] if path.exists() else 0, note=name)
                if not path.exists():
                    case.measure(name, path, lambda: bar.advance())
        else:
            parts = {path: [*command, "--part", str(number)] for number, path in enumerate(sizes)}
            run_parts(parts, workers, lambda path: bar.advance(sizes[path]))
        bar.advance(0, note="the report")
        sets = {name: Measured.read(path) for name, path in files.items()}
        sequences = {k: case.sequences(case.policy, k) for k in chosen}
        report = {"policy": case.names[0], "zoo": str(case.zoo.path), "also": case.names[1]}
        report |= audit(case.field, sequences, case.judged, sets)
        report["verdicts"] = judge(report, sets)
        report["seconds_s"] = round(time.monotonic() - began, 1)
        write_atomic(out / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
        write_atomic(out / "report.html", page(report, sets))
    shutil.rmtree(case.folder(out), ignore_errors=True)
    return report


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Inside, no other process audits the same into this folder. Raises: InputError where one does."""
    make_folder(folder)
    handle = os.open(folder, os.O_RDONLY)
    try:
        if not lock(handle):
            raise InputError(f"the same audit is under way in {folder.parent}; wait for it, or pass another -o")
        yield
    finally:
        os.close(handle)


def print_audit(report: dict, folder: Path) -> None:
    """The verdicts, all sets and the identity measures as tables."""
    title = f"audit of {report['policy']} on {report['task']}, K = {report['judged_steps']}"
    table(title, SET_COLUMNS, set_rows(report))
    table("identity", ["measure", "outputs", "SGD nets", "ratio"], identity_rows(report))
    table("verdicts", ["criterion", "verdict", "value", "bar", "95 % interval"], [row[:5] for row in verdict_rows(report)])
    worth = ", ".join(
        f"K = {k}: {'more than all' if epochs is None else f'{epochs:.1f}'}"
        for k, epochs in report["sgd_epochs_that_steps_are_worth"].items()
    )
    print(f"SGD epochs that synth steps are worth: {worth}. Page: {folder / 'report.html'}; {report['seconds_s']:.0f} s")
