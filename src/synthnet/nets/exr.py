"""Weights as pictures: multi-part float32 OpenEXR that gives the tensors back bit for bit, and PNGs for people without a
viewer.

One part per tensor, named after it, one channel Y. A kernel [out, in, height, width] is tiled: row out·height, column in·width.
The shape and data type of each tensor, and the file's metadata, are attributes.
"""

import json
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synthnet.console import figure_library
from synthnet.errors import InputError, missing_extra
from synthnet.files import make_folder, refuse_collisions, unfinished_beside, write_atomic
from synthnet.nets.weights import INTEGER_DTYPES, WeightState

SHAPE, DTYPE, METADATA, INTEGERS = "synthnet.shape", "synthnet.dtype", "synthnet.metadata", "synthnet.integers"
EXACT = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)}
FRAME_MS = 700


def _library():
    try:
        import OpenEXR
    except ImportError as error:
        raise missing_extra("OpenEXR", "exr") from error
    return OpenEXR


def to_image(tensor: Tensor) -> np.ndarray:
    """A tensor as a float32 image [height width]: kernels tiled, vectors one row high."""
    values = tensor.detach().to(torch.float32)
    if values.ndim == 4:
        values = values.permute(0, 2, 1, 3).reshape(values.shape[0] * values.shape[2], -1)
    elif values.ndim < 2:
        values = values.reshape(1, -1)
    else:
        values = values.reshape(values.shape[0], -1)
    return np.ascontiguousarray(values.numpy())  # OpenEXR writes other layouts wrongly, without an error


def from_image(image: np.ndarray, shape: Sequence[int]) -> Tensor:
    """The tensor of that shape that `to_image` made the image of."""
    values = torch.from_numpy(np.array(image, np.float32))
    if len(shape) == 4:
        out, into, height, width = shape
        return values.reshape(out, height, into, width).permute(0, 2, 1, 3).contiguous()
    return values.reshape(tuple(shape))


def write_exr(path: str | Path, state: WeightState) -> None:
    """Write a weight state as multi-part OpenEXR, whole or not at all.

    Raises: InputError for float64, which float32 images cannot hold, where there is no float tensor, or without OpenEXR.
    """
    library, parts, integers = _library(), [], {}
    images = {name: to_image(value) for name, value in state.tensors.items() if value.dtype not in INTEGER_DTYPES}
    if not images:
        raise InputError(f"{path}: there is no float tensor to draw")
    window = tuple(max(image.shape[i] for image in images.values()) - 1 for i in (1, 0))
    for name, value in state.tensors.items():
        dtype = str(value.dtype).removeprefix("torch.")
        if value.dtype in INTEGER_DTYPES:
            integers[name] = {"dtype": dtype, "shape": list(value.shape), "values": value.flatten().tolist()}
        elif dtype not in EXACT:
            raise InputError(f"{path}: {name} is {dtype}; OpenEXR holds float32: convert the file first")
    for name, image in images.items():
        value = state.tensors[name]
        header = {
            "name": name,
            "type": library.scanlineimage,
            "compression": library.ZIP_COMPRESSION,
            "displayWindow": (np.zeros(2, np.int32), np.array(window, np.int32)),  # all parts must share one
            SHAPE: json.dumps(list(value.shape)),
            DTYPE: str(value.dtype).removeprefix("torch."),
        }
        if not parts:
            header |= {METADATA: json.dumps(state.metadata), INTEGERS: json.dumps(integers)}
        parts.append(library.Part(header, {"Y": image}, name))
    path = Path(path)
    temporary = unfinished_beside(path)
    try:
        library.File(parts).write(str(temporary))
        write_atomic(path, temporary.read_bytes())
    except (RuntimeError, OSError) as error:
        raise InputError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_exr(path: str | Path) -> WeightState:
    """The weight state that `write_exr` wrote. Raises: InputError for a missing, damaged or foreign file."""
    library, path = _library(), Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        file = library.File(str(path), separate_channels=True)
        tensors = {}
        for part in file.parts:
            shape, dtype = json.loads(part.header[SHAPE]), EXACT[part.header[DTYPE]]
            pixels = part.channels["Y"].pixels
            if prod(shape) != pixels.size:
                raise ValueError(f"{part.name()} has {pixels.size} pixels for the shape {shape}")
            tensors[part.name()] = from_image(pixels, shape).to(dtype)
        first = file.parts[0].header
        for name, entry in json.loads(first[INTEGERS]).items():
            tensors[name] = torch.tensor(entry["values"], dtype=getattr(torch, entry["dtype"])).reshape(entry["shape"])
        return WeightState(tensors, {str(key): str(text) for key, text in json.loads(first[METADATA]).items()})
    except (RuntimeError, OSError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        text = " ".join(str(error).split())[:120]
        raise InputError(f"{path} is not an OpenEXR file that synthnet wrote ({type(error).__name__}: {text})") from error


def contact_sheet(states: Sequence[WeightState], titles: Sequence[str], path: str | Path) -> None:
    """A PNG of every float tensor of each state, one row per state; with several states an animated PNG beside it,
    `-moving.png`.

    Each tensor has one colour scale over all states: blue negative, red positive. Raises: InputError without matplotlib.
    """
    _, plt = figure_library()
    from PIL import Image  # comes with matplotlib

    names = [name for name, value in states[0].tensors.items() if value.dtype not in INTEGER_DTYPES]
    images = [[_compact(to_image(state.tensors[name])) for name in names] for state in states]
    bounds = [max(float(np.abs(row[i]).max()) for row in images) or 1.0 for i in range(len(names))]

    def draw(rows: list[list[np.ndarray]], labels: Sequence[str]) -> "Image.Image":
        figure, axes = plt.subplots(
            len(rows), len(names), figsize=(2.2 * len(names), 2.3 * len(rows)), squeeze=False, layout="constrained"
        )
        for line, row, label in zip(axes, rows, labels, strict=True):
            for cell, image, name, bound in zip(line, row, names, bounds, strict=True):
                cell.imshow(image, cmap="RdBu_r", vmin=-bound, vmax=bound, interpolation="nearest", aspect="auto")
                cell.set_title(name, fontsize=7)
                cell.set(xticks=[], yticks=[])
            line[0].set_ylabel(label, fontsize=7)
        figure.canvas.draw()
        picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba()).copy())
        plt.close(figure)
        return picture

    path = Path(path)
    draw(images, titles).save(path)
    if len(states) > 1:
        frames = [draw([row], [label]) for row, label in zip(images, titles, strict=True)]
        moving = path.with_name(f"{path.stem}-moving.png")
        frames[0].save(moving, save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0)


def _compact(image: np.ndarray) -> np.ndarray:
    """A long row wrapped into a near-square, so that a vector can be seen (for looking only)."""
    if image.shape[0] > 1 or image.shape[1] < 4:
        return image
    width = int(np.ceil(image.shape[1] ** 0.5))
    padded = np.full(width * -(-image.shape[1] // width), np.nan, np.float32)
    padded[: image.shape[1]] = image[0]
    return np.nan_to_num(padded.reshape(-1, width))


def export(states: Sequence[WeightState], names: Sequence[str], out: str | Path) -> list[Path]:
    """An .exr for each state, and one contact sheet (several states of one shape: animated too), in the folder `out`."""
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"-o {folder} is a file, expected a folder")
    refuse_collisions(names, folder)
    make_folder(folder)
    made = [folder / f"{name}.exr" for name in names]
    for path, state in zip(made, states, strict=True):
        write_exr(path, state)
    shapes = {tuple((n, tuple(v.shape)) for n, v in state.tensors.items()) for state in states}
    if len(shapes) == 1:
        contact_sheet(states, names, folder / "sheet.png")
    return made
