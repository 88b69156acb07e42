"""What every run is started with, whichever its stage."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from synthnet.device import choose_device
from synthnet.runs.lab import LabConfig


@dataclass(frozen=True)
class Setup:
    """The stage and the name of its task; the run directory, the settings as recorded there (YAML), and those that were
    given by name; the command; seed, device and lab; how many updates are asked for (0: it is no loop of updates)."""

    stage: str
    task: str
    folder: Path
    text: str = ""
    given: Mapping[str, object] = field(default_factory=dict)
    command: tuple[str, ...] = ("synthnet",)
    seed: int = 0
    device: str = "auto"
    lab: LabConfig | None = None
    updates: int = 0

    @property
    def place(self) -> torch.device:
        return choose_device(self.device)
