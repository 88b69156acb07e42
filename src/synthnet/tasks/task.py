"""Tasks: a target architecture, its data splits, and the conventional training recipe of its twins. One file per task."""

import importlib
import math
import pkgutil
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import get_args, get_origin

import torch
import torch.nn.functional as F
from torch import Tensor

from synthnet.engine import PICTURE, Network, Recipe, network_of
from synthnet.errors import InputError, unknown
from synthnet.nets import Arch, UserArch, draw_init, init_scale
from synthnet.seeds import start_generator
from synthnet.tasks import data, problems


@dataclass(frozen=True)
class Task:
    """A target architecture with data and metric (accuracy in [0, 1]). `side`: images are averaged down to side x side pixels;
    `held_back`: so many of the last train images count as reward images instead.

    A family of task `of` has several architectures: `family`, to train on, and `heldout`, never trained on. A joint task has
    the members of several tasks, each on its own data. `named_only`: a file that names no task is not taken to be of this one.
    """

    name: str
    arch: Arch | UserArch
    source: str
    recipe: Recipe
    split_seed: int = 0
    data_dir: str | None = None
    side: int | None = None
    held_back: int = 0
    of: str | None = None
    family: tuple[Arch, ...] = ()
    heldout: tuple[Arch, ...] = ()
    joint: tuple["Task", ...] = ()
    named_only: bool = False

    @property
    def members(self) -> tuple["Task", ...]:
        """The tasks that a stage trains on: one for each architecture of a family, those of each joint task, else this one."""
        if self.joint:
            return tuple(member for task in self.joint for member in task.members)
        return tuple(self.with_arch(arch) for arch in self.family) or (self,)

    def with_arch(self, arch: Arch | UserArch) -> "Task":
        """The same data and recipe for another architecture."""
        return replace(self, name=self.of or self.name, arch=arch, of=None, family=(), heldout=(), joint=())

    @property
    def network(self) -> Network:
        return network_of(self.arch, self.name)

    @property
    def start_scale(self) -> Tensor:
        """The scale of each weight [weights] of the start distribution."""
        return init_scale(self.network.spec)

    @property
    def data_set(self) -> str:
        """The name of the images as the net sees them."""
        return f"{self.source} {self.side}x{self.side}" if self.side else self.source

    @property
    def statistics(self) -> Tensor:
        """What a policy may be told of the training images [STATISTICS]: mean, deviation and, less the mean, the mean of each
        of the first ten classes, as pictures of 8x8 numbers each, mean over colours."""
        inputs, labels = self.data("train")
        of_class = torch.stack([inputs[labels == c].mean(0) if (labels == c).any() else inputs.mean(0) for c in range(10)])
        pictures = torch.cat([inputs.mean(0)[None], inputs.std(0)[None], of_class - inputs.mean(0)])
        colours = 1 if math.isqrt(pictures.shape[1]) ** 2 == pictures.shape[1] else 3
        side = math.isqrt(pictures.shape[1] // colours)
        return F.adaptive_avg_pool2d(pictures.view(-1, colours, side, side).mean(1), PICTURE).flatten()

    @property
    def data_key(self) -> dict:
        """What decides which images are train and which are test; recorded in zoos and policies."""
        if self.joint:
            return {"joint": [task.data_key for task in self.joint]}
        held_back = {"held_back": self.held_back} if self.held_back else {}
        return {"source": self.source, "split_seed": self.split_seed, **held_back}

    @property
    def n_classes(self) -> int:
        return self.network.module.n_classes

    def data(self, split: str) -> tuple[Tensor, Tensor]:
        """Inputs and labels of train, reward or val, or of several joined with '+', as in 'train+reward'.

        Raises: InputError for the test split: only evaluation reads it (`test_data`).
        """
        parts = split.split("+")
        if "test" in parts:
            raise InputError("the test split is read by evaluation and reports only; use train, reward or val")
        return self._select(parts)

    def test_data(self) -> tuple[Tensor, Tensor]:
        """The test split. Called by evaluation and reports only; a test enforces it."""
        return self._select(["test"])

    def _select(self, parts: list[str]) -> tuple[Tensor, Tensor]:
        if self.joint:
            raise ValueError(f"{self.name} has several data sets: ask its members")
        sizes = tuple(getattr(self.network.module, name, None) for name in ("n_inputs", "n_classes"))
        data_set = (self.source, self.data_dir, self.split_seed, self.side, self.held_back, tuple(parts))
        _check_fit(self.name, *sizes, *data_set)
        return _chosen(*data_set)

    def draw_start(self, purpose: str, seeds: list[int]) -> Tensor:
        """Start weights [seed weights] (`draw_init`). Each seed has a generator of its own, so a net does not depend on which
        others are drawn with it."""
        spec = self.network.spec
        return torch.stack([draw_init(spec, start_generator(purpose, self.name, seed)) for seed in seeds])


def data_settings(recorded: dict | None) -> dict:
    """The settings of a task that give the data of a recorded data key (None: unknown, the defaults)."""
    recorded = recorded or {}
    first = recorded["joint"][0] if "joint" in recorded else recorded
    return {key: value for key, value in first.items() if key != "source"}


def check_same_data(recorded: dict | None, task: Task, owner: str) -> None:
    """Refuse to mix splits: what was training data of `owner` would be test data of the task.

    Raises: InputError when the recorded data key (None: unknown) is not the task's, and no part of it is.
    """
    own = task.data_key
    if recorded is not None and own not in (recorded, *recorded.get("joint", ())):
        apart = [key for key in {**recorded, **own} if recorded.get(key) != own.get(key)]
        raise InputError(
            f"{owner} was made on other images, so what it learned from could be what it is judged on here: "
            + ", ".join(f"{key} is {recorded.get(key)} there and {own.get(key)} here" for key in apart)
        )


@lru_cache(maxsize=32)
def _chosen(
    source: str, data_dir: str | None, split_seed: int, side: int | None, held_back: int, parts: tuple[str, ...]
) -> tuple[Tensor, Tensor]:
    """Inputs and labels of some splits, shared by all who ask."""
    inputs, labels, indices = _splits(source, data_dir, split_seed, side, held_back)
    for part in parts:
        if part not in indices:
            raise unknown("split", part, indices)
    chosen = torch.cat([indices[part] for part in parts])
    return inputs[chosen], labels[chosen]


@lru_cache(maxsize=32)
def _check_fit(task: str, n_inputs: int | None, n_classes: int | None, source: str, *rest) -> None:
    """Refuse data that are not for a task's network, where that says its sizes. Raises: InputError."""
    inputs, labels = _chosen(source, *rest)
    if n_inputs not in (None, inputs.shape[1]):
        raise InputError(f"task {task}: its network takes {n_inputs} inputs, an example of {source} has {inputs.shape[1]}")
    if n_classes is not None and not 0 <= int(labels.min()) <= int(labels.max()) < n_classes:
        raise InputError(
            f"task {task}: its network tells {n_classes} classes apart (labels 0 to {n_classes - 1}), "
            f"{source} has labels {int(labels.min())} to {int(labels.max())}"
        )


@lru_cache(maxsize=8)
def _splits(
    source: str, data_dir: str | None, split_seed: int, side: int | None, held_back: int
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Inputs [example feature], standardised by the one mean and one deviation of all training pixels; labels; index sets."""
    images, labels = data.load(source, data_dir)
    inputs, indices = _resized(images, side).flatten(1), data.split_indices(source, len(labels), split_seed, held_back)
    if min(map(len, indices.values())) < 1:
        raise InputError(f"{len(labels)} images are too few to split into train, reward, val and test")
    train = inputs[indices["train"]]
    return (inputs - train.mean()) / train.std(), labels, indices


def _resized(images: Tensor, side: int | None) -> Tensor:
    """Square one-channel images [example …] averaged down to side x side pixels."""
    if side is None:
        return images
    own = math.isqrt(images[0].numel())
    return F.adaptive_avg_pool2d(images.reshape(-1, 1, own, own), side)


def task_names() -> list[str]:
    """The names of all tasks; a task is a file of this folder with a `build` function."""
    names = [module.name for module in pkgutil.iter_modules(problems.__path__) if not module.name.startswith("_")]
    return sorted(name.replace("_", "-") for name in names)


def build_task(name: str, split_seed: int = 0, data_dir: str | None = None, **config) -> Task:
    """The task of that name. Raises: InputError for an unknown name or setting."""
    if name not in task_names():
        raise unknown("task", name, task_names())
    module = importlib.import_module(f"synthnet.tasks.problems.{name.replace('-', '_')}")
    known = {field.name for field in fields(module.Config)} - {"name"}
    if wrong := sorted(set(config) - known):
        raise unknown(f"setting of task {name}", wrong[0], known)
    for field in fields(module.Config):
        if field.name in config and not _fits(config[field.name], field.type):
            raise InputError(f"task {name}: {field.name} should be {_plain(field.type)}, got {str(config[field.name])[:60]!r}")
    config = module.Config(split_seed=split_seed, data_dir=data_dir, **config)
    return replace(module.build(config), split_seed=split_seed, data_dir=data_dir, held_back=config.held_back)


def _fits(value, kind) -> bool:
    """Whether a plain value (from JSON or YAML) is of the annotated kind: int, str, an optional, or lists of these."""
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, get_args(kind)[0]) for item in value)
    if get_args(kind):
        return any(_fits(value, option) for option in get_args(kind))
    return type(value) is kind or (value is None and kind is type(None))


def _plain(kind) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
