"""Controllers: tasks of rewards alone, whose nets act on a plant; any environment of Gymnasium by its name."""

import torch

from synthnet.errors import InputError
from synthnet.nets import Arch
from synthnet.tasks.plants import GymPlant, Plant
from synthnet.tasks.settings import GYM
from synthnet.tasks.task import Task

HIDDEN = [32]  # of controllers of any environment


def controller(name: str, plant: Plant | GymPlant, hidden: list[int]) -> Task:
    """The task of controlling a plant by an MLP with ReLU; its return is the reward."""
    arch, spec = Arch.of("mlp", sizes=[plant.n_inputs, *hidden, plant.n_outputs]), getattr(plant, "spec", None)
    return Task(name=name, arch=arch, reward=plant, example=torch.zeros(1, plant.n_inputs), spec=spec, named_only=True)


def gym_task(name: str) -> Task:
    """The task of gym:ENV_ID. Raises: InputError for an environment that is not installed or of another kind, and for a name
    that would import a module."""
    environment = name.removeprefix(GYM)
    if ":" in environment:
        raise InputError(f"--task {name}: an environment's name has no ':', which would import a module")
    return controller(name, GymPlant.of(environment), HIDDEN)
