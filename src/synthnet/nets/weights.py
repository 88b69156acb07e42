"""The weights of a network: their spec, their values, and `.safetensors` files of them.

A *spec* lists the tensors (name, shape, role). A *state* holds values for a spec. All computation in SynthNet is on
*flat* weights: one float32 vector [weights] per net, or [net weights] for many; `flatten` and `unflatten` are exact.
"""

import json
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from synthnet.errors import InputError
from synthnet.files import DTYPES, write_safetensors

INTEGER_DTYPES = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool)
DTYPE_NAMED = {name: dtype for dtype, name in DTYPES.items()}
LARGEST_SPEC, MOST_AXES = 1 << 31, 64
PICKLED = (
    "a pickle, a zip or a torch.save file, not .safetensors; where it is a plain state dict, convert it with "
    "safetensors.torch.save_file(torch.load(path, weights_only=True), new_path); of a checkpoint save its state_dict, "
    "of a whole module module.state_dict()"
)
OTHER = "not .safetensors; load it with its own library and save its tensors with safetensors"
FOREIGN = {  # how files of other kinds begin. So may a header's length: it is asked only where that makes no sense
    b"version https:/": "a Git LFS pointer, not the weights it stands for: fetch them with git lfs pull",
    b"\x80": PICKLED,
    b"PK\x03\x04": PICKLED,
    b"GGUF": f"a GGUF file, {OTHER}",
    b"\x89HDF": f"an HDF5 file, {OTHER}",
    b"\x93NUMPY": f"a numpy file, {OTHER}",
    b"\x1f\x8b\x08": f"gzip-compressed, {OTHER}",
}


class TensorSpec(NamedTuple):
    """One tensor: its name, shape, and whether it is a parameter or a buffer; integer buffers are carried through."""

    name: str
    shape: tuple[int, ...]
    role: Literal["parameter", "buffer"] = "parameter"
    integer: bool = False


@dataclass(frozen=True)
class WeightSpec:
    """The tensors of one network, in a fixed order."""

    tensors: tuple[TensorSpec, ...]

    @classmethod
    def of_module(cls, module: nn.Module) -> "WeightSpec":
        """The spec of a module's state dict: parameters and persistent buffers."""
        parameters = {name for name, _ in module.named_parameters()}
        return cls(
            tuple(
                TensorSpec(
                    name, tuple(value.shape), "parameter" if name in parameters else "buffer", not value.dtype.is_floating_point
                )
                for name, value in module.state_dict().items()
            )
        )

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> "WeightSpec":
        """The spec that a file's tensors show: no roles beyond what the data types tell."""
        return cls(
            tuple(
                TensorSpec(name, tuple(value.shape), integer=not value.dtype.is_floating_point)
                for name, value in tensors.items()
            )
        )

    @property
    def floats(self) -> tuple[TensorSpec, ...]:
        """The tensors that the flat vector is made of."""
        return tuple(tensor for tensor in self.tensors if not tensor.integer)

    @property
    def n_weights(self) -> int:
        return sum(prod(tensor.shape) for tensor in self.floats)

    def positions(self) -> Tensor:
        """0 … n_weights - 1, for tables that say where weights lie; int32, since such tables are as large as the net.

        Raises: InputError for a net of 2^31 weights or more.
        """
        if self.n_weights >= LARGEST_SPEC:
            raise InputError(f"a network of {self.n_weights:,} weights is too large: fewer than {LARGEST_SPEC:,} are supported")
        return torch.arange(self.n_weights, dtype=torch.int32)

    def slices(self) -> dict[str, slice]:
        """Where each tensor lies in the flat vector."""
        places, start = {}, 0
        for tensor in self.floats:
            places[tensor.name] = slice(start, start + prod(tensor.shape))
            start += prod(tensor.shape)
        return places

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Tensors with any leading axes [... *shape] -> flat float32 [... weights]."""
        parts = []
        for spec in self.floats:
            value = tensors[spec.name]
            lead = value.shape[: value.ndim - len(spec.shape)]
            parts.append(value.reshape(*lead, -1).to(torch.float32))
        return torch.cat(parts, dim=-1)

    def scattered(self, tensors: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """Some tensors as flat weights [weights] of the kind of `like`, 0 for those that are not among them."""
        flat, places = torch.zeros_like(like), self.slices()
        for name, value in tensors.items():
            flat[places[name]] = value.flatten()
        return flat

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Flat [... weights] -> views [... *shape] by name."""
        if flat.shape[-1] != self.n_weights:
            raise ValueError(f"expected {self.n_weights} weights, got {flat.shape[-1]}")
        places = self.slices()
        return {t.name: flat[..., places[t.name]].reshape(*flat.shape[:-1], *t.shape) for t in self.floats}

    def differences(self, other: "WeightSpec") -> list[str]:
        """What `other` has that this spec does not, in words; empty when names, shapes and kinds agree (order is free)."""
        mine = {tensor.name: tensor for tensor in self.tensors}
        theirs = {tensor.name: tensor for tensor in other.tensors}
        found = [f"missing {name} {list(mine[name].shape)}" for name in mine if name not in theirs]
        found += [f"unexpected {name} {list(theirs[name].shape)}" for name in theirs if name not in mine]
        for name in mine:
            if name not in theirs:
                continue
            if mine[name].shape != theirs[name].shape:
                found.append(f"{name} is {list(theirs[name].shape)}, expected {list(mine[name].shape)}")
            elif theirs[name].integer and not mine[name].integer:
                found.append(f"{name} holds integers, expected floats")
            elif mine[name].integer and not theirs[name].integer:
                found.append(f"{name} holds floats, expected integers")
        return found


@dataclass
class WeightState:
    """Values for a spec, as they lie in a file: each tensor in its own data type, plus the file's metadata."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def spec(self) -> WeightSpec:
        return WeightSpec.of_tensors(self.tensors)

    def flat(self, spec: WeightSpec) -> Tensor:
        """The float weights in the spec's order, float32 [weights]."""
        return spec.flatten(self.tensors)

    def replaced(self, spec: WeightSpec, flat: Tensor, metadata: Mapping[str, str]) -> "WeightState":
        """The same tensors, in the same order and data types, with new float values; integer tensors pass through."""
        new = spec.unflatten(flat)
        return WeightState(
            {name: new[name].to(old.dtype) if name in new else old for name, old in self.tensors.items()}, dict(metadata)
        )


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a `.safetensors` file, without its tensors."""
    with _opened(path) as file:
        return dict(file.metadata() or {})


def read_header(path: str | Path) -> WeightState:
    """What a `.safetensors` file says of its tensors, which stay unread: without values, on torch's meta device.

    Raises: InputError as `read_weights`, but for values.
    """
    with _opened(path) as file:
        return _described(path, file)


def read_weights(path: str | Path) -> WeightState:
    """Read a `.safetensors` file strictly.

    Raises: InputError, naming the file, when it is missing, empty, truncated, not a safetensors file, has no tensors,
    or holds NaN or infinite values or a data type that is not a number.
    """
    with _opened(path) as file:
        state = _described(path, file)
        try:
            state.tensors = {name: file.get_tensor(name) for name in state.tensors}
        except (SafetensorError, TypeError, RuntimeError, OverflowError) as error:
            raise InputError(f"{path} holds a tensor that cannot be read: {' '.join(str(error).split())[:120]}") from error
    for name, value in state.tensors.items():
        if value.dtype.is_floating_point and not torch.isfinite(value).all():
            raise InputError(f"{path}: {name} holds NaN or infinite values; expected finite weights")
    return state


def _described(path: str | Path, file: Any) -> WeightState:
    """The tensors of an open file by name, shape and data type, and its metadata."""
    kinds = {name: file.get_slice(name) for name in list(file.keys())}
    if not kinds:
        raise InputError(f"{path} holds no tensors")
    tensors = {}
    for name, kind in kinds.items():
        shape, told = kind.get_shape(), kind.get_dtype()
        if told not in DTYPE_NAMED:
            raise InputError(f"{path}: {name} has data type {told}; expected float16, bfloat16, float32 or float64")
        if 0 in shape:
            raise InputError(f"{path}: {name} has shape {shape} and holds no values")
        tensors[name] = torch.empty(shape, dtype=DTYPE_NAMED[told], device="meta")
    return WeightState(tensors, dict(file.metadata() or {}))


def write_weights(path: str | Path, state: WeightState) -> None:
    """Write a state as `.safetensors`, whole or not at all."""
    write_safetensors(path, state.tensors, {"format": "pt", **state.metadata})


def metadata_json(metadata: Mapping[str, str], key: str, path: str | Path = "the file") -> dict | None:
    """A JSON object from one metadata key, or None where the key is absent."""
    if key not in metadata:
        return None
    try:
        value = json.loads(metadata[key])
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: metadata {key} is not valid JSON ({str(error)[:80]})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: metadata {key} should be a JSON object, got {type(value).__name__}")
    return value


def _opened(path: str | Path) -> Any:
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder, expected a .safetensors file")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a regular file (a pipe or a device): write it to a file first")
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if (size := status.st_size) == 0:
        raise InputError(f"{path} is empty")
    if path.suffix == ".json":
        raise InputError(f"{path} is JSON, an index of shards perhaps: save all tensors into one .safetensors file")
    if size >= 8 and struct.unpack("<Q", head[:8])[0] > size - 8:
        if kinds := [kind for magic, kind in FOREIGN.items() if head.startswith(magic)]:
            raise InputError(f"{path} is {kinds[0]}")
        raise InputError(f"{path} is not a whole .safetensors file: its header reaches past the end ({size} bytes)")
    try:
        opened = safe_open(path, framework="pt")
        with path.open("rb") as file:  # the library takes the last of two tensors of one name; which one was meant?
            header = json.loads(file.read(8 + struct.unpack("<Q", head[:8])[0])[8:], object_pairs_hook=_unique)
        for name, entry in header.items():
            if name != "__metadata__" and len(entry["shape"]) > MOST_AXES:
                raise ValueError(f"{name} has {len(entry['shape'])} axes, torch knows at most {MOST_AXES}")
        return opened
    except RuntimeError as error:  # of the system, which has no room for it
        raise InputError(f"{path} cannot be opened: {' '.join(str(error).split())[:120]}") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a valid .safetensors file: {error}") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header has a name twice")
    return found
