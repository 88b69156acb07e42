"""Code of the user's own, named on the command line or in the settings as FILE.py:NAME: architectures and reward functions.

Opt-in by the person at the keyboard. Nothing that is read from a weight file, a policy or a request can name code.
"""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from synthnet.errors import InputError
from synthnet.nets.weights import WeightSpec


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


@dataclass(frozen=True)
class UserArch:
    """The network that `factory` of the file at `path` returns: a module, or a module and example inputs [example …] that
    tracing may use (a module with an attribute `n_inputs` needs none)."""

    path: str
    factory: str

    @classmethod
    def parse(cls, text: str) -> "UserArch":
        """From FILE.py:FACTORY. Raises: InputError where the file, the factory or what it returns is not as expected."""
        arch = cls(*split_name(text, "--arch-py", "FACTORY"))
        arch.skeleton()
        return arch

    @cached_property
    def _made(self) -> tuple[nn.Module, Tensor | None]:
        factory = load_function(Path(self.path), self.factory, "--arch-py")
        try:
            made = factory()
        except (Exception, SystemExit) as error:  # the user's own code: whatever it raises is the user's to read
            raise InputError(f"--arch-py {self}: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
        net, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(net, nn.Module) or not (example is None or isinstance(example, Tensor)):
            raise InputError(f"--arch-py {self} should return a torch.nn.Module, or one and example inputs, got {type(made)}")
        if not isinstance(n_inputs := getattr(net, "n_inputs", None), int | None):
            raise InputError(f"--arch-py {self}: its attribute n_inputs should be an integer, got {n_inputs!r}")
        return net.eval(), example

    @property
    def builder(self) -> str:
        return str(self)

    @property
    def kind(self) -> tuple[str, int, int]:
        return str(self), 0, 0

    @property
    def example(self) -> Tensor | None:
        return self._made[1]

    def skeleton(self) -> nn.Module:
        return self._made[0]

    def spec(self) -> WeightSpec:
        return WeightSpec.of_module(self.skeleton())

    def to_dict(self) -> None:
        """Nothing: a file must not name code."""

    def __str__(self) -> str:
        return f"{self.path}:{self.factory}"
