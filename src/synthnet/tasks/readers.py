"""Data files of the user's own: `.npz` arrays, `.csv` tables, folders of class folders of images; problem files for them."""

import csv
from pathlib import Path

import numpy as np

from synthnet.errors import InputError, missing_extra
from synthnet.tasks.dataset import Data

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MOST_WHOLE = 20  # different whole numbers in a table's column that still count as classes


def read_data(path: str | Path, target: str | None = None) -> Data:
    """The data of an `.npz` with x and y (or x_train, y_train, x_test, y_test), a `.csv` with a header (`target`: the column to
    predict, by default the last), or a folder of class folders of images of one size.

    Raises: InputError where it is none of these, or lacks something.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; expected FILE.py:NAME, a task's name, an .npz, a .csv or a folder of images")
    if target is not None and path.suffix != ".csv":
        raise InputError(f"--target names a column of a .csv; {path} is none")
    if path.is_dir():
        return Data(*_images(path))
    if path.suffix == ".npz":
        return _arrays(path)
    if path.suffix == ".csv":
        return Data(*_table(path, target))
    raise InputError(f"{path}: expected FILE.py:NAME, an .npz, a .csv or a folder of class folders of images")


def _arrays(path: Path) -> Data:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # numpy and zipfile raise many kinds for foreign files; all mean the same here
        raise InputError(f"{path} is no .npz of plain arrays: {' '.join(str(error).split())[:160]}") from error
    if {"x", "y"} <= set(arrays):
        return Data(arrays["x"], arrays["y"])
    if {"x_train", "y_train"} <= set(arrays):
        parts = {part: (arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "val", "test") if f"x_{part}" in arrays}
        return Data(**parts)
    raise InputError(
        f"{path} should hold x and y, or x_train, y_train, x_test and y_test; it has {', '.join(arrays) or 'nothing'}"
    )


def _table(path: Path, target: str | None) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise InputError(f"{path} is no table of text with a header: {str(error)[:120]}") from error
    rows = [row for row in rows if row]
    if twice := [name for name in header if header.count(name) > 1]:
        raise InputError(f"{path} has two columns named {twice[0]!r}: rename one")
    target = header[-1] if target is None else target
    if target not in header:
        raise InputError(f"{path} has no column {target!r}; it has {', '.join(header)[:300]}")
    if wrong := [number for number, row in enumerate(rows, 2) if len(row) != len(header)]:
        raise InputError(f"{path}: line {wrong[0]} has {len(rows[wrong[0] - 2])} cells, the header {len(header)}")
    place = header.index(target)
    inputs = [[cell for at, cell in enumerate(row) if at != place] for row in rows]
    names = [name for name in header if name != target]
    values = np.empty((len(rows), len(names)), np.float32)
    for line, row in enumerate(inputs):
        for column, cell in enumerate(row):
            try:
                values[line, column] = float(cell)
            except ValueError:
                raise InputError(
                    f"{path}: line {line + 2}, column {names[column]} holds {cell[:40]!r} where a number belongs: "
                    "encode such columns as numbers, or leave them out"
                ) from None
    return values, _targets([row[place] for row in rows])


def _targets(cells: list[str]) -> np.ndarray:
    """Labels where a column holds text or few whole numbers, else real numbers."""
    try:
        numbers = np.array([float(cell) for cell in cells], np.float32)
    except ValueError:
        return np.array(cells)
    whole = np.isfinite(numbers).all() and (numbers == np.round(numbers)).all() and len(np.unique(numbers)) <= MOST_WHOLE
    return numbers.astype(np.int64) if whole else numbers


def _images(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise missing_extra("pillow", "data") from error
    classes = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    files = [(path, each.name) for each in classes for path in sorted(each.iterdir()) if path.suffix.lower() in PICTURES]
    if not files:
        raise InputError(f"{folder} should hold a folder of images for each class, as in {folder}/cat/1.png; it has none")
    found, sizes = [], {}
    for path, _ in files:
        try:
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"its pixels are of kind {image.mode}, which has no white: save it with 8 bits a pixel")
                found.append(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
        except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"{path} is no image that can be read: {str(error)[:120]}") from error
        sizes.setdefault(found[-1].size, path)
    if len(sizes) > 1:
        shown = ", ".join(f"{path} {width}x{height}" for (width, height), path in list(sizes.items())[:3])
        raise InputError(f"{folder}: images should be of one size, these differ ({shown}): resize them first")
    grey = all(image.mode == "L" for image in found)
    arrays = [np.asarray(image if grey else image.convert("RGB"), np.float32) / 255 for image in found]
    pixels = np.stack(arrays)[:, None] if grey else np.stack(arrays).transpose(0, 3, 1, 2)
    return pixels, np.array([name for _, name in files])


def problem_text(path: Path, name: str, module: str | None, target: str | None) -> str:
    """The text of a problem file for data, with a plain net where no module is named. Raises: InputError as `read_data`."""
    data = read_data(path, target)
    shown = f"read_data({str(path.resolve())!r}" + (f", {target!r})" if target is not None else ")")
    if module is not None:
        from synthnet.nets import split_name

        file, factory = split_name(module, "--module", "NAME")
        made = f"load_function(Path({str(Path(file).resolve())!r}), {factory!r}, '--module')"
        imports = "from pathlib import Path\n\nimport synthnet\nfrom synthnet.nets import load_function\n"
    else:
        made, imports = f"lambda: {_plain_net(data)}", "import synthnet\nfrom torch import nn\n"
    return (
        f'"""Written by synthnet learn, for {path.name}: change the net, the loss or the metric as you like."""\n\n{imports}'
        f"from synthnet.tasks.readers import read_data\n\n\ndef {name}():\n    return synthnet.Task(\n        module={made},\n"
        f"        data={shown},\n    )\n"
    )


def _plain_net(data: Data) -> str:
    """The code of a net for these data: two convolutions for images, else one hidden layer."""
    shape, out = data.shape, data.n_targets
    if len(shape) == 3 and min(shape[1:]) >= 8:
        size = 16 * (shape[1] // 4) * (shape[2] // 4)
        convs = f"nn.Conv2d({shape[0]}, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1)"
        return f"nn.Sequential({convs}, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear({size}, {out}))"
    n_in = int(np.prod(shape))
    flat = "" if len(shape) == 1 else "nn.Flatten(), "
    return f"nn.Sequential({flat}nn.Linear({n_in}, 32), nn.ReLU(), nn.Linear(32, {out}))"
