"""Code of the user's own, named on the command line or in the settings as FILE.py:NAME: problems, modules, reward functions.

Opt-in by the person at the keyboard. Nothing that is read from a weight file, a policy or a request can name code.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from synthnet.errors import InputError, said


def split_name(text: str, option: str, what: str) -> tuple[str, str]:
    """File and name of FILE.py:NAME. Raises: InputError, naming the option and what the name is of."""
    path, _, name = text.rpartition(":")
    if not path.endswith(".py") or not name.isidentifier():
        raise InputError(f"{option} expects FILE.py:{what}, got {text!r}")
    return path, name


def load_function(path: Path, name: str, option: str) -> Callable:
    """What a Python file calls `name`; runs that file. Raises: InputError, naming the option, where there is no such file or
    name, or the file fails."""
    if not path.is_file():
        raise InputError(f"{option}: {path} does not exist")
    return asked(f"{option} {path}:{name}", _loaded, path, name)


def _loaded(path: Path, name: str) -> Callable:
    spec = importlib.util.spec_from_file_location(f"synthnet_user_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    sys.path.insert(0, str(path.resolve().parent))  # its siblings, as when python runs the file
    try:
        spec.loader.exec_module(module)
        return getattr(module, name)
    finally:
        sys.path.pop(0)


def asked(what: str, function: Callable, *given: Any) -> Any:
    """What a function of the user's own gives. Raises: InputError, beginning with `what`, for whatever it raises but Ctrl-C."""
    try:
        return function(*given)
    except InputError as error:
        raise InputError(f"{what}: {error}") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{what}: {type(error).__name__}: {said(error)}") from error
