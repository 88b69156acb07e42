"""`synthnet audit`: a policy and a zoo in, one report.json, one page and one table out."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from synthnet.audit import CONTROL_NETS, N_CONTROLS, Field, audit, make_controls
from synthnet.audit_page import SET_COLUMNS, identity_rows, page, set_rows, verdict_rows
from synthnet.baselines.ddpm import DdpmConfig
from synthnet.device import choose_device
from synthnet.errors import InputError
from synthnet.evaluation import task_of
from synthnet.figures import figure_library
from synthnet.files import make_folder, write_atomic
from synthnet.policy import Policy, load_policy
from synthnet.progress import Bar
from synthnet.report import table
from synthnet.rollout import synthesize_flat
from synthnet.synthesis import choose_steps, policy_path
from synthnet.tasks import Task, check_same_data, data_settings
from synthnet.verdicts import REFERENCES, judge
from synthnet.zoo import Zoo


def audit_policy(
    policy: str,
    zoo_dir: str,
    out: Path,
    steps: list[int] | None = None,
    n_training: int = 1024,
    n_heldout: int = 256,
    also: Mapping[str, str] | None = None,
    task_name: str | None = None,
    device: str = "auto",
) -> dict:
    """Audit a policy against a zoo of its own recipe; writes report.json and report.html into `out` and returns the report.

    Raises: InputError where the zoo is too small, of another architecture, or on another split than the policy.
    """
    began = time.monotonic()
    figure_library()
    if n_training < 2 or n_heldout < 2:
        raise InputError(f"an audit needs at least 2 training and 2 held-out nets, got {n_training} and {n_heldout}")
    trained, zoo = load_policy(policy_path(policy), choose_device(device)), Zoo.open(zoo_dir)
    task = _task(trained, zoo, task_name)
    others = {name: load_policy(policy_path(path), choose_device(device)) for name, path in (also or {}).items()}
    for loaded in (trained, *others.values()):
        loaded.layout(task.network)
        check_same_data(loaded.record.get("data"), task, "a policy")
    judged = choose_steps(trained, None)
    chosen = sorted({*(choose_steps(trained, k) for k in steps or [1, 2, 4]), judged})
    make_folder(out)
    n_controls = min(CONTROL_NETS, n_heldout)
    with Bar("audit", 2 * n_heldout + (N_CONTROLS + len(others)) * n_controls + min(CONTROL_NETS, n_training)) as bar:
        bar.advance(0, note="making the controls")
        field = Field.of_zoo(task, zoo, n_training, n_heldout)
        controls = make_controls(field, ddpm=DdpmConfig())
        if taken := sorted(set(others) & {*controls, *REFERENCES}):
            raise InputError(f"--also: the name {taken[0]!r} is taken; choose another")
        for name, loaded in others.items():
            controls[name] = _sequences(loaded, field, choose_steps(loaded, None))[:CONTROL_NETS, -1]
        sequences = {k: _sequences(trained, field, k) for k in chosen}
        bar.advance(0, note="measuring")
        report, sets = audit(field, sequences, judged, controls, lambda: bar.advance())
        report = {"policy": policy, "zoo": str(zoo_dir), "also": dict(also or {}), **report}
        report["verdicts"] = judge(report, sets)
        report["seconds_s"] = round(time.monotonic() - began, 1)
        write_atomic(out / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
        write_atomic(out / "report.html", page(report, sets))
    return report


def _task(policy: Policy, zoo: Zoo, name: str | None) -> Task:
    settings = data_settings(zoo.data)
    task = task_of(zoo.arch, name or policy.record.get("task"), **settings)
    check_same_data(zoo.data, task, str(zoo.path))
    return task


def _sequences(policy: Policy, field: Field, n_steps: int) -> Tensor:
    return synthesize_flat(policy, field.starts.to(policy.device), n_steps, field.network).cpu()


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
