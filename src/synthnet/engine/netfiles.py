"""Weight files as the commands meet them: opened and checked against an architecture, named on the command line, written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from synthnet.engine.network import Network, network_of
from synthnet.errors import InputError
from synthnet.files import make_folder, refuse_collisions
from synthnet.nets import Arch, UserArch, WeightSpec, WeightState, metadata_json, read_weights, recognise, write_weights

WRAPPERS = ("module.", "model.", "_orig_mod.")  # DataParallel, training libraries, torch.compile


@dataclass(frozen=True)
class NetFile:
    """A weight file and the network it belongs to, checked against each other; `prefix`: what wrappers put before every name
    of the file, which `state` has not."""

    path: Path
    state: WeightState
    arch: Arch | UserArch
    net: Network
    prefix: str = ""

    @property
    def flat(self) -> Tensor:
        """Its float weights [weights], float32, in the network's order."""
        return self.state.flat(self.net.spec)

    def replaced(self, flat: Tensor, metadata: dict[str, str]) -> WeightState:
        """The file's state with other weights [weights], its names as the file has them."""
        state = self.state.replaced(self.net.spec, flat, metadata)
        return WeightState({self.prefix + name: value for name, value in state.tensors.items()}, state.metadata)


def open_net(path: str | Path, like: Arch | UserArch | None = None) -> NetFile:
    """Read a weight file and find its architecture: from its metadata, else from its names and shapes; where `like` is given,
    one with its builder, inputs and classes, whatever its widths.

    Raises: InputError when the file is bad, its architecture unknown, or its tensors are not that architecture's.
    """
    state, prefix = without_prefix(read_weights(path), like)
    arch = find_arch(state, path, like)
    if arch is None:
        shown = ", ".join(f"{t.name} {list(t.shape)}" for t in state.spec.tensors[:6])
        hint = "pass --task NAME or --arch-py FILE.py:FACTORY"
        raise InputError(f"{path}: its names and shapes ({shown}) are of no architecture known here; {hint}")
    return NetFile(Path(path), state, arch, network_of(arch, state.metadata.get("synthnet.task")), prefix)


def without_prefix(state: WeightState, like: Arch | UserArch | None = None) -> tuple[WeightState, str]:
    """The state without what wrappers of torch and of training libraries put before all names, any chain of them, and what
    that was; as it is where its names fit with it."""
    names, prefix = list(state.tensors), ""
    while found := [each for each in WRAPPERS if all(name.startswith(prefix + each) for name in names)]:
        prefix += found[0]
    if not prefix:
        return state, ""
    if recognise(state.spec, like) is not None or (like is not None and not network_of(like).spec.differences(state.spec)):
        return state, ""
    return WeightState({name.removeprefix(prefix): value for name, value in state.tensors.items()}, state.metadata), prefix


def find_arch(state: WeightState, path: str | Path, like: Arch | UserArch | None) -> Arch | UserArch | None:
    """The architecture of a file's weights, checked against its tensors; None where nothing tells it."""
    arch = recorded_arch(state.metadata, path) or recognise(state.spec, like)
    if like is not None and (arch is None or arch.kind != like.kind):
        arch = like
    if arch is not None:
        check_fit(path, arch, network_of(arch).spec, state.spec)
    return arch


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
    """Write results; the folder of several is made just before the first."""
    if not single:
        make_folder(targets[0].parent)
    for target, state in zip(targets, states, strict=True):
        write_weights(target, state)
