"""Trackers: where a run's metrics go beside metrics.jsonl. TensorBoard, MLflow and W&B, each imported only where it is used."""

import importlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from synthnet.errors import InputError, missing_extra
from synthnet.runs import ranks
from synthnet.runs.directory import RunDirectory, Tracker
from synthnet.runs.lab import by_full_name
from synthnet.runs.setup import Setup
from synthnet.settings import check_settings


def open_run(setup: Setup) -> RunDirectory:
    """An open run directory whose metrics also go to the trackers that the settings name.

    Raises: InputError where the run directory cannot be used, or a tracker is not installed or refuses.
    """
    if setup.lab:
        check_settings("lab", setup.lab)
    run = RunDirectory(setup)
    try:
        run.trackers = list(_trackers(run.path, setup)) if setup.lab and ranks.first() else []
    except BaseException:
        run.close()
        raise
    return run


def _trackers(folder: Path, setup: Setup) -> Iterator[Tracker]:
    lab, installed = setup.lab, importlib.util.find_spec("tensorboard") is not None
    if lab.tensorboard or (lab.tensorboard is None and installed):
        if not installed:
            raise missing_extra("tensorboard", "train")
        yield TensorBoardTracker(folder)
    if lab.mlflow:
        yield MlflowTracker(folder, _settings(setup.text), lab.mlflow)
    if lab.wandb:
        yield WandbTracker(folder, _settings(setup.text), lab.wandb)


def numbers(metrics: dict) -> dict[str, float]:
    """The metrics that are numbers, by name."""
    return {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}


class TensorBoardTracker:
    """Event files in the run directory's `tensorboard` folder."""

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder / "tensorboard", flush_secs=10)

    def log(self, update: int, metrics: dict) -> None:
        for name, value in numbers(metrics).items():
            self.writer.add_scalar(name, value, update)

    def close(self) -> None:
        self.writer.close()


class MlflowTracker:
    """A run named after the run directory in the experiment `synthnet` of a tracking store; the same one again on resume."""

    def __init__(self, folder: Path, settings: dict, address: str):
        mlflow = _module("mlflow")
        try:
            mlflow.set_tracking_uri(address)
            mlflow.set_experiment("synthnet")
        except Exception as error:  # mlflow raises many kinds for an address that it cannot use
            raise InputError(f"lab.mlflow={address}: {' '.join(str(error).split())[:200]}") from error
        found = mlflow.search_runs(filter_string=f"tags.run_dir = '{folder.resolve()}'", output_format="list")
        self.mlflow = mlflow
        self.run = mlflow.start_run(run_id=found[0].info.run_id if found else None, run_name=folder.name)
        mlflow.set_tag("run_dir", str(folder.resolve()))
        if not found:
            mlflow.log_params({name: str(value)[:250] for name, value in settings.items()})

    def log(self, update: int, metrics: dict) -> None:
        self.mlflow.log_metrics({name.replace("@", "_"): value for name, value in numbers(metrics).items()}, step=update)

    def close(self) -> None:
        self.mlflow.end_run()


class WandbTracker:
    """A run of the project `synthnet`; `offline` writes below the run directory and sends nothing."""

    def __init__(self, folder: Path, settings: dict, mode: str):
        wandb = _module("wandb")
        os.environ.setdefault("WANDB_SILENT", "true")
        self.run = wandb.init(project="synthnet", name=folder.name, dir=str(folder), mode=mode, config=settings)

    def log(self, update: int, metrics: dict) -> None:
        self.run.log({**numbers(metrics), "update": update})

    def close(self) -> None:
        self.run.finish()


def _module(name: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise missing_extra(name, name) from error


def _settings(text: str) -> dict[str, object]:
    import yaml  # comes with omegaconf

    return {name: value for name, value in by_full_name(yaml.safe_load(text) or {}).items() if value != {}}
