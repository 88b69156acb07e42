"""Weight files as the commands meet them: opened, matched with an architecture, named on the command line, written."""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from torch import Tensor

from synthnet.engine.network import Network, network_of
from synthnet.errors import InputError, one_line
from synthnet.files import make_folder, refuse_collisions
from synthnet.nets import Arch, WeightSpec, WeightState, metadata_json, read_weights, recognise, write_weights

WRITERS = 8  # files that are written at a time
FORMAT = "1"  # of what our metadata say
WRAPPERS = ("module.", "model.", "_orig_mod.")  # DataParallel, training libraries, torch.compile


@dataclass(frozen=True)
class NetFile:
    """A weight file and the network it belongs to, checked against each other; `state` has the network's names, `names` says
    what the file calls each."""

    path: Path
    state: WeightState
    arch: Arch
    net: Network
    names: Mapping[str, str]

    @property
    def flat(self) -> Tensor:
        """Its float weights [weights], float32, in the network's order."""
        return self.state.flat(self.net.spec)

    def replaced(self, flat: Tensor, metadata: dict[str, str]) -> WeightState:
        """The file's state with other weights [weights], its names as the file has them."""
        state = self.state.replaced(self.net.spec, flat, metadata)
        return WeightState({self.names[name]: value for name, value in state.tensors.items()}, state.metadata)


def open_net(path: str | Path, like: Arch | None = None, known: Sequence[Arch] = ()) -> NetFile:
    """Read a weight file and find its architecture (`find_arch`): of `like`, of those of `known`, or of a family of ours.

    Raises: InputError when the file is bad, its architecture unknown, or its tensors are not that architecture's.
    """
    return match_net(path, read_weights(path), like, known)


def match_net(path: str | Path, state: WeightState, like: Arch | None = None, known: Sequence[Arch] = ()) -> NetFile:
    """As `open_net`, of weights that were read already; `path` is what messages call them."""
    arch, names = find_arch(state, path, like, known)
    if arch is None:
        if whole := [t.name for t in state.spec.tensors if t.integer and not t.name.endswith("num_batches_tracked")]:
            kind = str(state.tensors[whole[0]].dtype).removeprefix("torch.")
            raise InputError(f"{path}: {whole[0]} holds {kind} numbers: weights should be floats; dequantise them first")
        shown = ", ".join(f"{t.name} {list(t.shape)}" for t in state.spec.tensors[:6])
        hint = "say which net it is: --task NAME or FILE.py:NAME, or --policy a policy that was trained on it"
        raise InputError(f"{path}: its names and shapes ({one_line(shown, 400)}) are of no net known here; {hint}")
    back = {theirs: ours for ours, theirs in names.items()}
    renamed = WeightState({back[name]: value for name, value in state.tensors.items()}, state.metadata)
    return NetFile(Path(path), renamed, arch, network_of(arch, state.metadata.get("synthnet.task")), names)


def find_arch(
    state: WeightState, path: str | Path, like: Arch | None, known: Sequence[Arch] = ()
) -> tuple[Arch | None, dict[str, str]]:
    """The architecture of a file's weights and what the file calls each of its tensors; (None, {}) where nothing tells it.

    In this order: the file's metadata, which `like` must agree with; names and shapes, seen through what wrappers put before
    all names; shapes alone, names in natural order, where exactly one assignment fits. Raises: InputError where the metadata or
    `like` say one that does not fit, or where tensors could be exchanged.
    """
    if (version := state.metadata.get("synthnet.format", FORMAT)) != FORMAT:
        raise InputError(f"{path} has synthnet.format {one_line(version, 40)!r}; this SynthNet reads {FORMAT}")
    prefix = _prefix(state)
    plain = {name.removeprefix(prefix): name for name in state.tensors}
    stripped = WeightSpec.of_tensors({ours: state.tensors[own] for ours, own in plain.items()})
    views = [(state.spec, {name: name for name in state.tensors}), (stripped, plain)][: 2 if prefix else 1]
    told = recorded_arch(state.metadata, path)
    if like is not None and (told is None or told == like or told.kind != like.kind):
        told = like  # which may have its module at hand
    for spec, names in views:
        for arch in (told, *([] if told is not None and told is not like else [recognise(spec, like)]), *known):
            if arch is not None and (like is None or arch.kind == like.kind) and not network_of(arch).spec.differences(spec):
                return arch, names
    for arch in [told] if told is not None else known:
        if (found := by_shapes(network_of(arch).spec, stripped, f"{path} as {arch}")) is not None:
            return arch, {ours: plain[own] for ours, own in found.items()}
    if told is not None:
        check_fit(path, told, network_of(told).spec, stripped)
    return None, {}


def _prefix(state: WeightState) -> str:
    """What wrappers of torch and of training libraries put before all names, any chain of them."""
    prefix = ""
    while found := [each for each in WRAPPERS if all(name.startswith(prefix + each) for name in state.tensors)]:
        prefix += found[0]
    return prefix


def by_shapes(spec: WeightSpec, found: WeightSpec, what: str) -> dict[str, str] | None:
    """Which tensor of a file [found] is which of a net's, by shapes alone; None where they do not fit.

    Names of one pattern are taken in natural order, `10.weight` after `2.weight`. Raises: InputError where tensors of one shape
    have names that say nothing of their order.
    """
    mine, theirs = (sorted(each.tensors, key=_kind) for each in (spec, found))
    if [_kind(tensor) for tensor in mine] != [_kind(tensor) for tensor in theirs]:
        return None
    groups = {kind: [t.name for t in tensors] for kind, tensors in groupby(theirs, _kind)}
    assigned = {}
    for kind, tensors in groupby(mine, _kind):
        names = sorted(groups[kind], key=_natural)
        if len({re.sub(r"\d+", "0", name) for name in names}) > 1:
            raise InputError(
                f"{what}: its names fit none known here, and by shapes alone {' and '.join(names[:4])} could be exchanged: "
                "name them as the net does, or number them in order of depth"
            )
        assigned |= dict(zip([tensor.name for tensor in tensors], names, strict=True))
    return assigned


def _kind(tensor) -> tuple:
    return tensor.shape, tensor.integer


def _natural(name: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def recorded_arch(metadata: dict[str, str], path: str | Path) -> Arch | None:
    """The architecture that a file's metadata names, if it names one. Raises: InputError, naming the file."""
    recorded = metadata_json(metadata, "synthnet.arch", path)
    if recorded is None:
        return None
    try:
        return Arch.from_dict(recorded)
    except InputError as error:
        raise InputError(f"{path}: metadata synthnet.arch: {error}") from error


def check_fit(path: str | Path, arch: Arch, expected: WeightSpec, found: WeightSpec) -> None:
    if wrong := expected.differences(found):
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise InputError(f"{path} is not {arch}: {'; '.join(wrong[:8])}{more}")


def input_files(weights: str | Path | Sequence[str | Path]) -> list[Path]:
    """The weight files that an argument names: a file, a list of files, or all `.safetensors` of a folder."""
    given = [weights] if isinstance(weights, str | Path) else list(weights)
    paths = []
    if "" in map(str, given):
        raise InputError("an empty name was given where a weight file is expected")
    for path in map(Path, given):
        if not path.is_dir():
            paths.append(path)
            continue
        found = sorted(each for each in path.glob("*.safetensors") if not each.name.startswith("."))  # macOS leaves ._x
        if not found:
            raise InputError(f"{path} is a folder without .safetensors files")
        paths += found
    if not paths:
        raise InputError("no weight files were given")
    return paths


def output_files(paths: list[Path], out: str | Path, single: bool) -> list[Path]:
    """Where results go: `out` itself for one file, else files of the same names in the folder `out`."""
    out = Path(out)
    if single:
        if out.is_dir():
            raise InputError(f"-o {out} is a folder, but there is one input file: name the output file")
        if not out.parent.is_dir():
            raise InputError(f"-o {out}: the folder {out.parent} does not exist; make it first")
        return [out]
    if out.exists() and not out.is_dir():
        raise InputError(f"-o {out} is a file, but there are several inputs: name a folder")
    names = [path.name for path in paths]
    refuse_collisions(names, out)
    return [out / name for name in names]


def result_files(paths: list[Path], out: str | Path, single: bool) -> list[Path]:
    """`output_files` of what is made of the files `paths`. Raises: InputError where a result would take an input's place."""
    targets = output_files(paths, out, single)
    for target in targets:
        if target.exists() and any(path.exists() and target.samefile(path) for path in paths):
            raise InputError(f"-o {out} would write over {target}, an input: its weights would be lost; name another place")
    return targets


def write_all(targets: Sequence[Path], states: Sequence[WeightState], single: bool) -> None:
    """Write results, several at a time: most of the time goes into waiting for the disk. The folder of several is made just
    before the first. Each is written whole or not at all; where a place cannot be written to, some others may have been."""
    if not single:
        make_folder(targets[0].parent)
    pairs, pool = list(zip(targets, states, strict=True)), ThreadPoolExecutor(WRITERS)
    try:
        list(pool.map(lambda pair: write_weights(*pair), pairs))  # which raises what a thread raised
    finally:
        pool.shutdown(cancel_futures=True)
