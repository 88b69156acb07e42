"""The policies that ship with the package: which there are, what they say of themselves, and which serves a net."""

import json
from functools import lru_cache
from pathlib import Path

import torch

from synthnet.engine import network_of
from synthnet.errors import InputError, unknown
from synthnet.nets import Arch, metadata_json, read_metadata
from synthnet.policy import Policy, check_record, layout_of, read_policy

POLICY_DIR = Path(__file__).parent / "policies"
INPUTS = POLICY_DIR / "inputs.json"  # of those whose files do not say it, or not all of it


def policies() -> list[str]:
    """The names of the policies that ship with the package."""
    return sorted(path.stem for path in POLICY_DIR.glob("*.safetensors"))


def policy_path(name: str | Path) -> Path:
    """The file of a bundled policy by name, or a path as it is."""
    if str(name) in policies():
        return POLICY_DIR / f"{name}.safetensors"
    path = Path(name)
    if not path.exists() and path.suffix != ".safetensors":
        raise unknown("policy", str(name), policies())
    return path


def load_policy(policy: str | Path, device: str | torch.device = "cpu") -> Policy:
    """A bundled policy by name, or one from its file. Raises: InputError where there is none, or the file is damaged."""
    return read_policy(policy_path(policy), device)


def policy_record(name: str | Path) -> dict:
    """What the metadata of a policy's file say, without its tensors. Raises: InputError where it is none."""
    path = policy_path(name)
    record = metadata_json(read_metadata(path), "synthnet.policy", path)
    if record is None or "config" not in record:
        raise InputError(f"{path} is not a policy file: it has no synthnet.policy metadata")
    try:
        check_record(record)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return record


@lru_cache(maxsize=1)
def _bundled() -> dict[str, tuple[dict, list[Arch]]]:
    """Record and architectures of each policy that ships: of one net, of a family, of unlike nets. They are ours: none is
    built to be checked, which would cost more than a synthesis."""
    found = {}
    for name in policies():
        record = policy_record(name)
        found[name] = record, [Arch.of(arch["builder"], **arch["kwargs"]) for arch in record["archs"]]
    kinds = lambda archs: (len({arch.builder for arch in archs}), len(archs) > 1)  # noqa: E731
    return dict(sorted(found.items(), key=lambda entry: (kinds(entry[1][1]), entry[0])))


def known_archs(policy: str | Path | None = None) -> list[Arch]:
    """The architectures that a file may be of: those the policy was trained on; of no policy, of all that ship."""
    if policy is None:
        return [arch for _, archs in _bundled().values() for arch in archs]
    return [Arch.from_dict(arch) for arch in policy_record(policy).get("archs", ())]


def find_policy(arch: Arch, task: str | None = None, has_spec: bool = False) -> tuple[str, list[str]]:
    """The bundled policy that was trained on this architecture, first of all alone, else one that was trained on several of its
    kind and covers it, first of all where its depth is known; where any was trained for the named task, of those alone. And
    the others that were trained on it. `has_spec`: a spec was given, so of those that are told one.

    Raises: InputError when there is none.
    """
    bundled = {name: entry for name, entry in _bundled().items() if not has_spec or "spec" in entry[0]}
    own = {
        name: entry
        for name, entry in bundled.items()
        if task in (entry[0]["record"].get("task"), *entry[0].get("data_sets", ()))
    }
    archs = {name: _of_task(*entry, task if own else None) for name, entry in (own or bundled).items()}
    if trained := [name for name, known in archs.items() if arch in known]:
        return trained[0], trained[1:]
    of_its_kind = [name for name, known in archs.items() if len(known) > 1 and known[0].builder == arch.builder]
    for name in sorted(of_its_kind, key=lambda name: _depth_known(archs[name], arch), reverse=True):
        if _covers(bundled[name][0], archs[name][0], arch):
            return name, []
    if has_spec:
        raise InputError(f"no bundled policy that is told a spec was trained on {arch}: leave the spec out, or pass a policy")
    named = f" for the task {task}, which the file's metadata names," if own else ""
    raise InputError(
        f"no bundled policy{named} was trained on {arch}; learn one (synthnet learn FILE.py:NAME, docs/your-own-net.md), "
        f"or pass --policy FILE, or NAME of {', '.join(policies())}"
    )


def _of_task(record: dict, archs: list[Arch], task: str | None) -> list[Arch]:
    """Those of a policy's architectures that it was trained on for a task; all where its file does not tell them apart."""
    members = record["record"].get("members")
    if task is None or not members:
        return archs
    labels = {label for name, label in members if name == task}
    return [arch for arch in archs if arch.label in labels]


def described(name: str | Path) -> dict:
    """One line of `synthnet policies`: name, nets, data, inputs, best K, trunk, bytes and stages of a policy's file."""
    path, record = policy_path(name), policy_record(name)
    made, inputs = record["record"], inputs_of(name, record["record"])
    return {
        "name": path.stem if str(name) in policies() else str(name),
        "nets": list(map(str, known_archs(name) if str(name) not in policies() else _bundled()[str(name)][1])),
        "data": inputs.get("data") or made.get("task"),
        "inputs": inputs,
        **({"spec": record["spec"]} if "spec" in record else {}),
        "best_k": made.get("best_k", 1),
        "trunk": record["config"]["backbone"]["name"],
        "bytes": path.stat().st_size,
        "stages": [stage.get("stage") for stage in made.get("stages", [])],
    }


def inputs_of(name: str | Path, made: dict) -> dict:
    """What the inputs of a policy's nets are: as was found for those that ship, or as the record `made` of its file says."""
    found = json.loads(INPUTS.read_text()) if str(name) in policies() else {}
    return found.get(str(name)) or made.get("inputs") or {}


def _depth_known(archs: list[Arch], arch: Arch) -> tuple[bool, int]:
    """How well these know the depth of a net, the more the larger: whether it lies within theirs (in numbers of tensors), and
    minus how far the nearest of them is."""
    mine, depths = len(arch.spec().tensors), [len(other.spec().tensors) for other in archs]
    return min(depths) <= mine <= max(depths), -min(abs(mine - depth) for depth in depths)


def _covers(record: dict, first: Arch, arch: Arch) -> bool:
    """Whether the policy that a file's metadata describes, made for `first`, covers an architecture; its tensors are not needed
    for that."""
    try:
        layout_of(record["config"]["tokens"], network_of(arch), record["vocabulary"], first.n_outputs)
    except InputError:
        return False
    return True
