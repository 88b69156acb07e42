"""Tasks by name: the built-in ones, a file of `problems/` each, and those of the user's own, as FILE.py:NAME."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import get_args, get_origin

import torch
from torch import Tensor, nn

from synthnet.engine import arch_of
from synthnet.errors import InputError, unknown
from synthnet.nets import Arch, asked, load_function, split_name
from synthnet.tasks import problems
from synthnet.tasks.controllers import GymConfig, gym_task
from synthnet.tasks.settings import is_gym, is_own
from synthnet.tasks.task import Task


def task_names() -> list[str]:
    """The names of all tasks; a task is a file of `problems/` with a `build` function."""
    names = [module.name for module in pkgutil.iter_modules(problems.__path__) if not module.name.startswith("_")]
    return sorted(name.replace("_", "-") for name in names)


def build_task(name: str, split_seed: int = 0, data_dir: str | None = None, **config) -> Task:
    """The task of that name, or of FILE.py:NAME. Raises: InputError for an unknown name or setting, or what is no problem."""
    if is_own(name):
        return _own_task(name, split_seed, config)
    kind, build = _kind(name)
    known = {field.name for field in fields(kind)} - {"name"}
    if wrong := sorted(set(config) - known):
        raise unknown(f"setting of task {name}", wrong[0], known)
    for field in fields(kind):
        if field.name in config and not _fits(config[field.name], field.type):
            raise InputError(f"task {name}: {field.name} should be {_plain(field.type)}, got {str(config[field.name])[:60]!r}")
    named = {"name": name} if is_gym(name) else {}
    config = kind(split_seed=split_seed, data_dir=data_dir, **named, **config)
    return replace(build(config), split_seed=split_seed, held_back=config.held_back)


def _kind(name: str) -> tuple[type, Callable[..., Task]]:
    """What holds the settings of a task, and what builds it of these."""
    if is_gym(name):
        return GymConfig, gym_task
    if name not in task_names():
        raise unknown("task", name, task_names())
    module = importlib.import_module(f"synthnet.tasks.problems.{name.replace('-', '_')}")
    return module.Config, module.build


IN_MEMORY: dict[str, Task] = {}  # tasks that were made in this process, by the name that `name_of` gave them


def name_of(task: Task) -> str:
    """A name by which stages find a task that was made in this process."""
    name = task.name or getattr(task.module, "__name__", "task").strip("<>").replace("lambda", "task")
    key = f"python.py:{name}"
    IN_MEMORY[key] = task if task.name else replace(task, name=name)
    return key


def _own_task(name: str, split_seed: int, config: dict) -> Task:
    held_back = config.pop("held_back", 0)
    if config:
        raise InputError(f"a problem file has no settings but split_seed and held_back, got {', '.join(config)}")
    task = IN_MEMORY[name] if name in IN_MEMORY else own_task(name)
    return replace(task, split_seed=split_seed, held_back=held_back) if (split_seed, held_back) != (0, 0) else task


@lru_cache(maxsize=16)
def own_task(name: str) -> Task:
    """The task of FILE.py:NAME: a Task, or a function without arguments that returns one. Runs that file.

    Raises: InputError where there is no such file or name, it fails, or it is none.
    """
    path, found = split_name(name, "--task", "NAME")
    made = load_function(Path(path), found, "--task")
    if callable(made) and not isinstance(made, Task):
        made = asked(f"--task {name}", made)
    if not isinstance(made, Task):
        raise InputError(f"--task {name} should be a synthnet.Task, or a function that returns one, got {type(made).__name__}")
    return made if made.name else replace(made, name=found)


def _fits(value, kind) -> bool:
    """Whether a plain value (from JSON or YAML) is of the annotated kind: int, str, an optional, or lists of these."""
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, get_args(kind)[0]) for item in value)
    if get_args(kind):
        return any(_fits(value, option) for option in get_args(kind))
    return type(value) is kind or (value is None and kind is type(None))


def _plain(kind) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def own_arch(text: str) -> Arch:
    """The architecture of FILE.py:FACTORY, which returns a module, or a module and example inputs [example …] (a module with
    an attribute `n_inputs` needs none). Runs that file.

    Raises: InputError where the file, the factory or what it returns is not as expected.
    """
    path, name = split_name(text, "--arch-py", "FACTORY")
    made = asked(f"--arch-py {text}", load_function(Path(path), name, "--arch-py"))
    net, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(net, nn.Module) or not (example is None or isinstance(example, Tensor)):
        raise InputError(f"--arch-py {text} should return a torch.nn.Module, or one and example inputs, got {type(made)}")
    if not isinstance(n_inputs := getattr(net, "n_inputs", None), int | None):
        raise InputError(f"--arch-py {text}: its attribute n_inputs should be an integer, got {n_inputs!r}")
    first = next((part for part in net.modules() if isinstance(part, nn.Linear | nn.Conv2d | nn.Conv1d)), None)
    if example is None and n_inputs is None and not isinstance(first, nn.Linear):
        raise InputError(f"--arch-py {text}: what its inputs are cannot be told: return a module and an example of its inputs")
    return arch_of(net, torch.zeros(2, n_inputs or first.in_features) if example is None else example)
