"""Architectures: what turns a weight file into a network.

An `Arch` names one of our own builders with its arguments; or, of a module of the user's own, records its tensors and unit
groups (`traced`). So a file's metadata can describe a network but never name code.
"""

import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod

import torch
from torch import Tensor, nn

from synthnet.errors import InputError, unknown
from synthnet.nets.modules import BUILDERS
from synthnet.nets.symmetry import Symmetry
from synthnet.nets.weights import TensorSpec, WeightSpec

ARCH_VERSION = 1
TRACED = "traced"
MOST_TENSORS, LARGEST_TENSOR = 10_000, 1 << 31  # what a file may describe
TYPES = {"float32": torch.float32, "int64": torch.int64}  # of inputs


@dataclass(frozen=True)
class Arch:
    """A builder of ours and its keyword arguments (as JSON text, so that an Arch is hashable); `module`: of a traced one, the
    module itself, where the user's code is at hand."""

    builder: str
    kwargs_json: str
    module: nn.Module | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, builder: str, **kwargs) -> "Arch":
        return cls(builder, json.dumps(kwargs, sort_keys=True))

    @classmethod
    def of_traced(
        cls, module: nn.Module, spec: WeightSpec, example: Tensor, n_outputs: int, name: str, recorded: dict
    ) -> "Arch":
        """Of a module: its tensors, what `Symmetry.recorded` says, an example of its inputs [example …], and a name that
        changes with what it computes."""
        kind = next((kind for kind, dtype in TYPES.items() if dtype == example.dtype), None)
        if kind is None:
            raise InputError(f"inputs should be {' or '.join(TYPES)}, got {example.dtype}")
        tensors = [[tensor.name, list(tensor.shape), tensor.role, tensor.integer] for tensor in spec.tensors]
        inputs = {"shape": list(example.shape[1:]), "type": kind}
        kwargs = {"name": name, "tensors": tensors, "inputs": inputs, "outputs": n_outputs, **recorded}
        return cls(TRACED, json.dumps(kwargs, sort_keys=True), module)

    @classmethod
    def from_dict(cls, value: dict) -> "Arch":
        """From metadata or a policy file. Raises: InputError for anything but a known builder with plain arguments."""
        if not isinstance(value, dict):
            raise InputError(f"an architecture should be an object, got {str(value)[:60]}")
        builder, kwargs = value.get("builder"), value.get("kwargs", {})
        if not isinstance(builder, str) or builder not in (*BUILDERS, TRACED):
            raise unknown("architecture builder", str(builder), (*BUILDERS, TRACED))
        if value.get("version", ARCH_VERSION) != ARCH_VERSION:
            raise InputError(f"architecture version {value['version']} is not known; this SynthNet reads {ARCH_VERSION}")
        if not isinstance(kwargs, dict):
            raise InputError(f"architecture kwargs should be an object, got {kwargs!r}")
        return _checked(builder, json.dumps(kwargs, sort_keys=True))

    @property
    def traced(self) -> bool:
        return self.builder == TRACED

    @property
    def example(self) -> Tensor | None:
        """Two inputs [example …] of a traced one; our own modules say what their inputs are."""
        inputs = self.kwargs["inputs"] if self.traced else None
        return torch.zeros(2, *inputs["shape"], dtype=TYPES[inputs["type"]]) if inputs else None

    @property
    def activations(self) -> list[str]:
        """Those that its code has; a weight file does not say."""
        return self.kwargs.get("activations", []) if self.traced else ["gelu" if self.builder == "vit" else "relu"]

    @property
    def n_outputs(self) -> int:
        return self.kwargs["outputs"] if self.traced else self.skeleton().n_classes

    def symmetry(self) -> Symmetry:
        """The unit groups of a traced one as recorded. Raises: UntraceableError where there are none."""
        return Symmetry.of_record(self.spec(), self.kwargs)

    def check(self) -> None:
        """Refuse a traced one that is malformed, or too large to be built. Raises: InputError."""
        try:
            kwargs, sizes = self.kwargs, []
            if not isinstance(kwargs["name"], str) or not 0 < len(kwargs["tensors"]) <= MOST_TENSORS:
                raise ValueError("a name and tensors are expected")
            for name, shape, role, integer in kwargs["tensors"]:
                if not isinstance(name, str) or role not in ("parameter", "buffer") or type(integer) is not bool:
                    raise ValueError(f"tensor {str(name)[:60]} is malformed")
                sizes += shape
            if len({entry[0] for entry in kwargs["tensors"]}) < len(kwargs["tensors"]):
                raise ValueError("a tensor is listed twice")
            sizes += [*kwargs["inputs"]["shape"], kwargs["outputs"]]
            if (
                not all(type(size) is int and 0 < size < LARGEST_TENSOR for size in sizes)
                or kwargs["inputs"]["type"] not in TYPES
            ):
                raise ValueError("sizes should be positive whole numbers, and inputs of a known type")
            if max(self.spec().n_weights, prod(kwargs["inputs"]["shape"])) >= LARGEST_TENSOR:
                raise ValueError("it is too large")
            if "untraced" not in kwargs:
                self.symmetry()
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, RecursionError) as error:
            raise InputError(f"a traced architecture is malformed: {' '.join(str(error).split())[:160]}") from error

    @property
    def kwargs(self) -> dict:
        return json.loads(self.kwargs_json)

    def to_dict(self) -> dict:
        return {"builder": self.builder, "kwargs": self.kwargs, "version": ARCH_VERSION}

    def build(self) -> nn.Module:
        """A module with its own (global-generator) initial weights, in eval mode."""
        if self.traced:
            if self.module is None:
                raise InputError(f"{self} is known by its tensors alone, and this runs it: pass --task FILE.py:NAME")
            return self.module
        try:
            return BUILDERS[self.builder](**self.kwargs).eval()
        except TypeError as error:
            raise InputError(f"architecture {self.builder} does not take {self.kwargs}: {error}") from error

    def skeleton(self) -> nn.Module:
        """The module without storage (meta device)."""
        with torch.device("meta"):
            return self.build()

    def spec(self) -> WeightSpec:
        if self.traced:
            return WeightSpec(tuple(TensorSpec(name, tuple(shape), *rest) for name, shape, *rest in self.kwargs["tensors"]))
        return WeightSpec.of_module(self.skeleton())

    def __str__(self) -> str:
        if self.traced:
            return self.kwargs["name"]
        return f"{self.builder}({', '.join(f'{k}={v}' for k, v in self.kwargs.items())})"

    @property
    def kind(self) -> tuple[str, int, int]:
        """What the networks of a task share: builder, number of inputs, number of classes."""
        if self.traced:
            return self.kwargs["name"], prod(self.kwargs["inputs"]["shape"]), self.n_outputs
        module = self.skeleton()
        return self.builder, module.n_inputs, module.n_classes

    @property
    def label(self) -> str:
        """A short name for files and metrics: the builder and every number of its arguments, as in mlp-64-32-10."""
        return self.kwargs["name"] if self.traced else "-".join([self.builder, *re.findall(r"\d+", self.kwargs_json)])


@lru_cache(maxsize=16)
def _checked(builder: str, kwargs_json: str) -> Arch:
    """An architecture that a file names, once it is known to be one; many files name the same."""
    arch = Arch(builder, kwargs_json)
    arch.check() if arch.traced else arch.skeleton()  # which refuses arguments the builder does not take
    return arch


def recognise(spec: WeightSpec, like: Arch | None = None) -> Arch | None:
    """The architecture whose names and shapes a file shows, if it is one of our families: fc1, fc2, … MLPs; and, where `like`
    is a cnn, one of other channels, since the size of the images leaves no trace in a file."""
    if like is not None and like.builder == "cnn":
        return _recognise_cnn(spec, like)
    shapes = {tensor.name: tensor.shape for tensor in spec.tensors}
    layers = sorted(int(m[1]) for m in (re.fullmatch(r"fc([1-9][0-9]?)\.weight", name) for name in shapes) if m)
    if not layers or layers != list(range(1, len(layers) + 1)):
        return None
    weights = [shapes[f"fc{index}.weight"] for index in layers]
    if any(len(shape) != 2 for shape in weights):
        return None
    arch = Arch.of("mlp", sizes=[weights[0][1], *(shape[0] for shape in weights)])
    return arch if not arch.spec().differences(spec) else None


def _recognise_cnn(spec: WeightSpec, like: Arch) -> Arch | None:
    convs = [tensor.shape for tensor in spec.tensors if re.fullmatch(r"conv[1-9][0-9]?\.weight", tensor.name)]
    if not convs or any(len(shape) != 4 for shape in convs):
        return None
    try:
        arch = Arch.of("cnn", **{**like.kwargs, "channels": [convs[0][1], *(shape[0] for shape in convs)]})
        return arch if not arch.spec().differences(spec) else None
    except InputError:
        return None
