"""Code of the user's own, named on the command line or in the settings as FILE.py:NAME: problems, modules, reward functions.

Opt-in by the person at the keyboard. Nothing that is read from a weight file, a policy or a request can name code.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from synthnet.errors import InputError


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
    spec = importlib.util.spec_from_file_location(f"synthnet_user_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    sys.path.insert(0, str(path.resolve().parent))  # its siblings, as when python runs the file
    try:
        spec.loader.exec_module(module)
        return getattr(module, name)
    except (Exception, SystemExit) as error:  # the user's own code: whatever it raises is the user's to read
        text = " ".join(str(error).split())[:200]
        raise InputError(f"{option} {path}:{name}: {type(error).__name__}: {text}") from error
    finally:
        sys.path.pop(0)
