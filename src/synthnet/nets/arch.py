"""Architectures: what turns a weight file into a runnable network.

An `Arch` names one of our own builders with its arguments, so a file's metadata can describe a network but never name code.
"""

import json
import re
from dataclasses import dataclass

import torch
from torch import nn

from synthnet.errors import InputError, unknown
from synthnet.nets.modules import BUILDERS
from synthnet.nets.weights import WeightSpec

ARCH_VERSION = 1


@dataclass(frozen=True)
class Arch:
    """A builder of ours and its keyword arguments (as JSON text, so that an Arch is hashable)."""

    builder: str
    kwargs_json: str

    @classmethod
    def of(cls, builder: str, **kwargs) -> "Arch":
        return cls(builder, json.dumps(kwargs, sort_keys=True))

    @classmethod
    def from_dict(cls, value: dict) -> "Arch":
        """From metadata or a policy file. Raises: InputError for anything but a known builder with plain arguments."""
        if not isinstance(value, dict):
            raise InputError(f"an architecture should be an object, got {str(value)[:60]}")
        builder, kwargs = value.get("builder"), value.get("kwargs", {})
        if not isinstance(builder, str) or builder not in BUILDERS:
            raise unknown("architecture builder", str(builder), BUILDERS)
        if value.get("version", ARCH_VERSION) != ARCH_VERSION:
            raise InputError(f"architecture version {value['version']} is not known; this SynthNet reads {ARCH_VERSION}")
        if not isinstance(kwargs, dict):
            raise InputError(f"architecture kwargs should be an object, got {kwargs!r}")
        arch = cls(builder, json.dumps(kwargs, sort_keys=True))
        arch.skeleton()  # refuses arguments the builder does not take
        return arch

    @property
    def example(self) -> None:
        """Our own modules say what their inputs are."""

    @property
    def kwargs(self) -> dict:
        return json.loads(self.kwargs_json)

    def to_dict(self) -> dict:
        return {"builder": self.builder, "kwargs": self.kwargs, "version": ARCH_VERSION}

    def build(self) -> nn.Module:
        """A module with its own (global-generator) initial weights, in eval mode."""
        try:
            return BUILDERS[self.builder](**self.kwargs).eval()
        except TypeError as error:
            raise InputError(f"architecture {self.builder} does not take {self.kwargs}: {error}") from error

    def skeleton(self) -> nn.Module:
        """The module without storage (meta device)."""
        with torch.device("meta"):
            return self.build()

    def spec(self) -> WeightSpec:
        return WeightSpec.of_module(self.skeleton())

    def __str__(self) -> str:
        return f"{self.builder}({', '.join(f'{k}={v}' for k, v in self.kwargs.items())})"

    @property
    def kind(self) -> tuple[str, int, int]:
        """What the networks of a task share: builder, number of inputs, number of classes."""
        module = self.skeleton()
        return self.builder, module.n_inputs, module.n_classes

    @property
    def label(self) -> str:
        """A short name for files and metrics: the builder and every number of its arguments, as in mlp-64-32-10."""
        return "-".join([self.builder, *re.findall(r"\d+", self.kwargs_json)])


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
