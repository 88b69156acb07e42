"""Data of the user's own: arrays of examples and targets, split, standardised, and known by a hash."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from synthnet.errors import InputError

SHARES = {"train": 0.65, "reward": 0.05, "val": 0.10, "test": 0.20}  # of each class
FEW, MOST_CLASSES = 50, 1000
STANDARDS = ("features", "pixels", False)
Part = tuple[Any, Any]  # inputs [example …] and targets [example …]


class Splits(NamedTuple):
    """Inputs [example …] and targets [example …] of all splits as nets see them, and where each split lies."""

    inputs: Tensor
    targets: Tensor
    indices: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Data:
    """Examples `x` [example …] with targets `y` [example …], or parts that are apart already: train=(x, y), val, test, reward.

    What is missing is split off by `split_seed`, stratified by class: train 65, reward 5, val 10, test 20 %. `standardise`:
    "features" (each its own mean and deviation; the default for inputs of one dim), "pixels" (one of each; for more), or False
    (as they are: whole numbers stay such, as embeddings need them); fitted on train. Labels of classes, of any kind, are
    sorted and numbered; real targets are standardised on train. Raises: InputError for what nothing can learn from.
    """

    x: Any = None
    y: Any = None
    train: Part | None = None
    val: Part | None = None
    test: Part | None = None
    reward: Part | None = None
    standardise: str | bool | None = None
    _parts: dict[str, tuple[Tensor, Any]] = field(init=False, repr=False)

    def __post_init__(self):
        given = {name: getattr(self, name) for name in SHARES if getattr(self, name) is not None}
        if (self.x is None) != (self.y is None) or (self.x is None) == ("train" not in given):
            raise InputError("Data takes x and y, or train=(x, y) and further parts")
        if given and self.x is not None:
            raise InputError("Data takes x and y, or parts that are apart already, not both")
        if self.standardise is not None and self.standardise not in STANDARDS:
            raise InputError(f'standardise should be "features", "pixels" or False, got {self.standardise!r}')
        parts = given or {"train": (self.x, self.y)}
        object.__setattr__(self, "_parts", {name: _checked(name, part) for name, part in parts.items()})
        shapes = {name: tuple(x.shape[1:]) for name, (x, _) in self._parts.items()}
        if len(set(shapes.values())) > 1:
            raise InputError(f"the parts have examples of different shapes: {shapes}")
        if self.n_examples < FEW:
            warnings.warn(f"only {self.n_examples} examples: what is measured on so few says little", stacklevel=3)
        if self.classes is not None and len(self.classes) < 2:
            raise InputError(f"all targets are of one class ({self.classes[0]!r}): there is nothing to tell apart")
        if self.classes is not None and len(self.classes) > max(2, min(MOST_CLASSES, self.n_examples // 3)):
            raise InputError(
                f"y holds {len(self.classes)} different labels for {self.n_examples} examples, too many for classes: "
                "pass real numbers (float) for a regression"
            )
        if self.classes is None and float(self._reals.std()) == 0:
            raise InputError(f"all targets are {float(self._reals.flatten()[0]):g}: there is nothing to learn")

    @property
    def n_examples(self) -> int:
        return sum(len(x) for x, _ in self._parts.values())

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example."""
        return tuple(self._parts["train"][0].shape[1:])

    @cached_property
    def classes(self) -> list | None:
        """The labels of classes in order; None where targets are real."""
        targets = [y for _, y in self._parts.values()]
        if all(isinstance(y, Tensor) for y in targets):
            return None
        return sorted({label for y in targets for label in y.tolist()})

    @property
    def n_targets(self) -> int:
        """How many numbers a net should put out."""
        return len(self.classes) if self.classes is not None else self._reals[0].numel()

    @cached_property
    def _reals(self) -> Tensor:
        return torch.cat([y for _, y in self._parts.values() if isinstance(y, Tensor)])

    @cached_property
    def key(self) -> dict:
        """What tells these data from others: a hash of all arrays."""
        digest = hashlib.sha256()
        for name, (x, y) in self._parts.items():
            for array in (x.numpy(), y.numpy() if isinstance(y, Tensor) else y):
                values = array.astype(str) if array.dtype.kind not in "fiub" else array
                digest.update(f"{name} {values.dtype} {values.shape} {self.standardise}".encode() + values.tobytes())
        return {"sha256": digest.hexdigest()[:16]}

    @property
    def name(self) -> str:
        return f"data {self.key['sha256'][:8]}"

    def inputs(self, split_seed: int = 0, held_back: int = 0) -> dict:
        """What a net's inputs and outputs are, as JSON: shape, what is subtracted and divided by; classes in order, or the map
        of real targets."""
        plain = lambda part: part.float().tolist() if part is not None else None  # noqa: E731
        shift, scale = self.input_map(split_seed, held_back)
        told = {"data": self.name, "shape": list(self.shape), "subtracted": plain(shift), "divided_by": plain(scale)}
        if self.classes is not None:
            return {**told, "classes": self.classes}
        mean, deviation = self.target_map(split_seed, held_back)
        return {**told, "targets": {"mean": plain(mean), "deviation": plain(deviation)}}

    @lru_cache(maxsize=4)  # noqa: B019  (data live as long as their process)
    def splits(self, split_seed: int = 0, held_back: int = 0) -> Splits:
        """Everything as nets see it. Raises: InputError where a split would be empty."""
        inputs, targets, indices = self._all_inputs, self._all_targets, self._indices(split_seed, held_back)
        shift, scale = self.input_map(split_seed, held_back)
        if shift is not None:
            inputs = (inputs.double() - shift).div(scale).float()
        if (found := self.target_map(split_seed, held_back)) is not None:
            mean, deviation = found
            targets = (targets.double() - mean).div(deviation).float()
        return Splits(inputs, targets, indices)

    def input_map(self, split_seed: int = 0, held_back: int = 0) -> tuple[Tensor | None, Tensor | None]:
        """What is subtracted from inputs, and what they are divided by then; None where they stay as they are."""
        return _fit(self._all_inputs[self._indices(split_seed, held_back)["train"]], self._standard)

    def target_map(self, split_seed: int = 0, held_back: int = 0) -> tuple[Tensor, Tensor] | None:
        """Mean and deviation of real targets on train; None of classes."""
        if self.classes is not None:
            return None
        return _fit(self._reals[self._indices(split_seed, held_back)["train"]], "features")

    @property
    def _standard(self) -> str | bool:
        if self.standardise is not None:
            return self.standardise
        return "features" if len(self.shape) == 1 else "pixels"

    @cached_property
    def _all_inputs(self) -> Tensor:
        return torch.cat([x for x, _ in self._parts.values()])

    @cached_property
    def _all_targets(self) -> Tensor:
        """Real targets as they are, labels of classes as numbers."""
        if self.classes is None:
            return self._reals
        numbers = {label: number for number, label in enumerate(self.classes)}
        return torch.tensor([numbers[label] for _, y in self._parts.values() for label in y.tolist()])

    @lru_cache(maxsize=4)  # noqa: B019
    def _indices(self, split_seed: int, held_back: int) -> dict[str, Tensor]:
        """Where each split lies, the last `held_back` train examples among reward. Raises: InputError where one is empty."""
        found = self._drawn(split_seed)
        if not 0 <= held_back < len(found["train"]):
            raise InputError(f"task.held_back must lie in 0..{len(found['train']) - 1}, got {held_back}")
        kept = len(found["train"]) - held_back
        found |= {"train": found["train"][:kept], "reward": torch.cat([found["train"][kept:], found["reward"]])}
        if empty := [name for name, part in found.items() if not len(part)]:
            raise InputError(f"{self.n_examples} examples are too few to split: {', '.join(empty)} would be empty")
        return found

    def _drawn(self, split_seed: int) -> dict[str, Tensor]:
        """Parts that were given as they are; what is missing is taken from train."""
        places, start = {}, 0
        for name, (x, _) in self._parts.items():
            places[name] = torch.arange(start, start + len(x))
            start += len(x)
        missing = [name for name in SHARES if name not in places]
        draw = torch.Generator().manual_seed(split_seed)
        pool = places["train"][torch.randperm(len(places["train"]), generator=draw)]
        targets = self._all_targets
        groups = [pool[targets[pool] == label] for label in range(len(self.classes))] if self.classes else [pool]
        taken: dict[str, list[Tensor]] = {name: [] for name in ("train", *missing)}
        whole = sum(SHARES[name] for name in taken)
        for group in groups:
            bounds, total = [0], 0.0
            for name in taken:
                total += SHARES[name] / whole
                bounds.append(round(total * len(group)))
            for name, first, last in zip(taken, bounds, bounds[1:], strict=False):
                taken[name].append(group[first:last])
        found = {name: torch.cat(parts) for name, parts in taken.items()}
        found = {name: part[torch.randperm(len(part), generator=draw)] for name, part in found.items()}
        return {name: found.get(name, places.get(name)) for name in SHARES}


def _fit(train: Tensor, standard: str | bool) -> tuple[Tensor | None, Tensor | None]:
    """What to subtract and what to divide by, from train examples: of each feature, or one for all."""
    if standard is False:
        return None, None
    train = train.double()
    if standard == "pixels":
        return train.mean(), train.std().clamp_min(1e-12)
    deviation = train.std(0)
    return train.mean(0), torch.where(deviation > 1e-12, deviation, torch.ones_like(deviation))


def _checked(name: str, part: Part) -> tuple[Tensor, Any]:
    """Inputs as a tensor; targets as a tensor of real numbers, or an array of labels."""
    if not isinstance(part, Sequence) or len(part) != 2:
        raise InputError(f"{name} should be (inputs, targets), got {type(part).__name__}")
    if isinstance(part[1], list | tuple):
        _check_kinds(name, part[1])
    x, y = (np.asarray(each.detach().cpu() if isinstance(each, Tensor) else each) for each in part)
    if x.dtype.kind not in "fiub":
        shown = next((str(value)[:40] for value in x.reshape(-1)), "nothing")
        raise InputError(f"{name}: inputs should be numbers, got {x.dtype} (such as {shown!r})")
    if x.ndim < 2 or not len(x):
        raise InputError(f"{name}: inputs should be [example …] with at least one dim beside examples, got {list(x.shape)}")
    if y.shape[:1] != x.shape[:1]:
        raise InputError(f"{name}: {len(x)} inputs and targets of shape {list(y.shape)} do not go together")
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 and y.dtype.kind != "f" else y
    for what, array in (("inputs", x), ("targets", y)):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            where = np.argwhere(~np.isfinite(array))[0].tolist()
            raise InputError(
                f"{name}: {what} hold NaN or infinity (first at {where}): leave those examples out, or fill them in"
            )
    inputs = torch.from_numpy(np.ascontiguousarray(x.astype(np.float32 if x.dtype.kind == "f" else np.int64)))
    if y.dtype.kind == "f":
        return inputs, torch.from_numpy(y.astype(np.float32)).reshape(len(y), -1)
    if y.ndim != 1 or y.dtype.kind not in "iubUSO":
        raise InputError(
            f"{name}: targets should be labels [example] or real numbers [example …], got {y.dtype} {list(y.shape)}"
        )
    _check_kinds(name, y.tolist())
    return inputs, y


def _check_kinds(name: str, labels: Sequence) -> None:
    """Refuse labels that numpy would turn into others: some text and some not."""
    kinds = {"text" if isinstance(label, str) else type(label).__name__ for label in labels}
    if "text" in kinds and len(kinds) > 1:
        raise InputError(f"{name}: targets mix {' and '.join(sorted(kinds))}: give labels of one kind")
