"""Controllers: tasks of rewards alone, whose nets act on a plant; any environment of Gymnasium by its name."""

from dataclasses import dataclass, replace

import torch

from synthnet.errors import InputError
from synthnet.nets import Arch
from synthnet.settings import COUNT, setting
from synthnet.tasks.plants import STARTS, GymPlant, Plant
from synthnet.tasks.settings import GYM, DataConfig
from synthnet.tasks.task import Task


@dataclass
class ControlConfig(DataConfig):
    hidden: list[int] = setting([16], "sizes of the hidden layers")
    starts: int = setting(STARTS, "start states that a return is averaged over, the same for all nets", COUNT)

    def of(self, plant: Plant | GymPlant) -> Task:
        """The task of controlling a plant under these settings."""
        return controller(self.name, replace(plant, starts=self.starts), self.hidden)


def controller(name: str, plant: Plant | GymPlant, hidden: list[int]) -> Task:
    """The task of controlling a plant by an MLP with ReLU; its return is the reward."""
    arch, spec = Arch.of("mlp", sizes=[plant.n_inputs, *hidden, plant.n_outputs]), getattr(plant, "spec", None)
    return Task(name=name, arch=arch, reward=plant, example=torch.zeros(1, plant.n_inputs), spec=spec, named_only=True)


@dataclass
class GymConfig(ControlConfig):
    """Of an environment of Gymnasium, gym:ENV_ID."""

    name: str = ""
    hidden: list[int] = setting([32], "sizes of the hidden layers")
    starts: int = setting(4, "start states that a return is averaged over, the same for all nets", COUNT)


def gym_task(config: GymConfig) -> Task:
    """The task of gym:ENV_ID. Raises: InputError for an environment that is not installed or of another kind, and for a name
    that would import a module."""
    environment = config.name.removeprefix(GYM)
    if ":" in environment:
        raise InputError(f"--task {config.name}: an environment's name has no ':', which would import a module")
    return config.of(GymPlant.of(environment))
