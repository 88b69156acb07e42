"""What tells a problem of the user's own from another of the same name: its net, its data and the code of its functions."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor

from synthnet.files import raw_bytes
from synthnet.tasks.settings import is_own
from synthnet.tasks.task import Task

LIBRARIES = ("torch", "numpy", "sklearn", "synthnet")  # whose code has versions of its own


def told(made: Any, seen: tuple[int, ...] = ()) -> Any:
    """What tells a function from another, as JSON: its code and constants, what it has by default and closes over, and the
    functions of its own module that it calls; of a plain value the value, of any other object its kind, its call and the plain
    values that it holds; of what comes with a library the name."""
    if made is None or isinstance(made, bool | int | float | str | bytes):
        return repr(made)
    if id(made) in seen:
        return "again"
    seen = (*seen, id(made))
    if isinstance(made, Tensor):
        return ["tensor", list(made.shape), hashlib.sha256(raw_bytes(made.detach().cpu())).hexdigest()]
    if isinstance(made, list | tuple):
        return [told(each, seen) for each in made]
    if isinstance(made, dict):
        return [[repr(key), told(value, seen)] for key, value in made.items()]
    if isinstance(made, partial):
        return ["partial", told(made.func, seen), told(made.args, seen), told(made.keywords, seen)]
    if isinstance(made, FunctionType):
        return _function(made, seen)
    kind = type(made)
    held = {name: each for name, each in getattr(made, "__dict__", {}).items() if isinstance(each, int | float | str | Tensor)}
    call = kind.__dict__.get("__call__")
    return [
        f"{kind.__module__}.{kind.__qualname__}",
        told(call, seen) if isinstance(call, FunctionType) else "",
        told(held, seen),
    ]


def _function(made: FunctionType, seen: tuple[int, ...]) -> Any:
    if made.__module__.partition(".")[0] in LIBRARIES:
        return f"{made.__module__}.{made.__qualname__}"
    cells = [cell.cell_contents for cell in made.__closure__ or ()]
    named = [made.__globals__.get(name) for name in made.__code__.co_names]
    called = [each for each in named if isinstance(each, FunctionType) and each.__module__ == made.__module__]
    held = [each for each in named if isinstance(each, bool | int | float | str | Tensor)]
    parts = made.__defaults__, made.__kwdefaults__, cells, called, held
    return [made.__qualname__, _code(made.__code__), *(told(each, seen) for each in parts)]


def _code(code: CodeType) -> list:
    return [code.co_code.hex(), *code.co_names, list(map(_constant, code.co_consts))]


def _constant(made: object) -> Any:
    if isinstance(made, frozenset):  # whose order differs from process to process
        return sorted(map(repr, made))
    return _code(made) if isinstance(made, CodeType) else repr(made)


def functions_of(task: Task) -> list:
    """What a task's own functions are told by."""
    objective = task.objective
    spec = task.variants.to_json() if task.variants else None
    parts: list[Callable | None] = [objective.loss, objective.metric, task.reward, task.start, task.variant]
    return [spec, *map(told, parts)]


def note(name: str, task: Task) -> str:
    """A comment for the recorded settings of a run: nothing of a built-in task, whose name says what it is."""
    if not is_own(name):
        return ""
    made = [task.arch.to_dict(), task.data_key, functions_of(task)]
    return f"# problem {hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]}\n"
