"""A policy from its self-describing file: rebuilt by our own names, with every size bounded before anything is allocated."""

from pathlib import Path

import torch

from synthnet.engine import STATISTICS, Variants, network_of
from synthnet.errors import InputError
from synthnet.nets import Arch, metadata_json, read_metadata, read_weights
from synthnet.policy.imagined import io_sizes
from synthnet.policy.policy import POLICY_FORMAT, ActionConfig, Policy, PolicyConfig

LARGEST_SIZE, LARGEST_NET = 1 << 20, 1 << 26  # what a file's metadata may ask to be built
LARGEST_STATISTIC = 1e6
KINDS = {  # of what a record holds, if it does
    "task": str,
    "data": dict,
    "inputs": dict,
    "inputs_of": dict,
    "stages": list,
    "members": list,
    "best_k": int,
}
RETIRED = {"z": 1e-3, "thinking": 1, "summary": 4}  # settings of trunks that became constants


def read_policy(path: str | Path, device: torch.device | str = "cpu") -> Policy:
    """A policy from its file. Nothing in the file can name code: trunks, tokens and builders are our own, by name.

    Raises: InputError when the file is missing, damaged, or not a policy.
    """
    path = Path(path)
    record = metadata_json(read_metadata(path), "synthnet.policy", path)
    if record is None or "config" not in record:
        told = f"weights that policy {str(record.get('name'))[:60]} made" if record else "it has no synthnet.policy metadata"
        raise InputError(f"{path} is not a policy file: {told}")
    if record.get("format") != POLICY_FORMAT:
        raise InputError(f"{path} has policy format {record.get('format')}; this SynthNet reads {POLICY_FORMAT}")
    tensors = read_weights(path).tensors
    try:
        check_record(record)
        with torch.random.fork_rng(devices=[]):  # the weights that it is built with are replaced at once
            policy = _rebuild(record)
        policy.load_state_dict({name: value.float() for name, value in tensors.items()})
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError, RuntimeError) as error:
        text = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: its policy metadata is malformed or does not fit its tensors ({text})") from error
    return policy.to(device).eval()


def _rebuild(record: dict) -> Policy:
    """A policy as its metadata describes it, with sizes bounded before anything is allocated."""
    config = dict(record["config"])
    config["action"] = ActionConfig(**config["action"])
    config["backbone"] = _without_retired(config["backbone"])
    sizes = [
        *config["backbone"].values(),
        *config["tokens"].values(),
        *record["vocabulary"].values(),
        config["k_max"],
        config.get("critic", 0),
        config.get("imagined", 0),
    ]
    if any(isinstance(size, int) and not 0 <= size <= LARGEST_SIZE for size in sizes):
        raise InputError(f"policy metadata holds a size outside 0..{LARGEST_SIZE}")
    archs = [Arch.from_dict(arch) for arch in record["archs"]]
    if sum(arch.spec().n_weights for arch in archs) > LARGEST_NET:
        raise InputError(f"policy metadata names networks of more than {LARGEST_NET} weights")
    if config.get("imagined"):
        n_inputs, n_classes = io_sizes(network_of(archs[0]))
        if config["imagined"] * config["k_max"] * (n_inputs + n_classes) > LARGEST_NET:
            raise InputError(f"policy metadata asks for imagined examples of more than {LARGEST_NET} numbers")
    policy = Policy(PolicyConfig(**config), archs, record["vocabulary"])
    made = record["record"]
    if not 1 <= made.get("best_k", 1) <= config["k_max"]:
        raise InputError(f"policy metadata holds a best K outside 1..{config['k_max']}")
    policy.record = made
    policy.variants = Variants.from_json(record["spec"]) if "spec" in record else None
    width = policy.variants.width if policy.variants else 0
    if policy.reads_spec and width != config["backbone"]["spec"]:
        told = f"the policy is told {config['backbone']['spec']} numbers, and the spec in its metadata has {width}"
        raise InputError(f"{told} (one of three values and more is told as flags: train anew what was made before)")
    policy.data_sets = _checked_statistics(record.get("data_sets", {}))
    if policy.reads_data and not policy.data_sets:
        raise InputError("the policy is told of data, and its metadata holds no statistics")
    return policy


def check_record(record: dict) -> None:
    """Refuse metadata of a policy whose parts are of other kinds than those that are read off it without building it."""
    made = record.get("record")
    if not isinstance(made, dict) or not isinstance(record.get("archs"), list):
        raise InputError("policy metadata holds no record, or no architectures")
    if wrong := [key for key, kind in KINDS.items() if key in made and type(made[key]) is not kind]:
        raise InputError(f"policy metadata holds a malformed record: {wrong[0]} should be of kind {KINDS[wrong[0]].__name__}")
    parts = made.get("data", {}).get("joint", [{}])
    members = [isinstance(each, list) and [type(part) for part in each] == [str, str] for each in made.get("members", [])]
    plain = isinstance(parts, list) and len(parts) > 0 and all(isinstance(part, dict) for part in parts)
    if not plain or not all(members) or not all(map(_is_stage, made.get("stages", []))):
        raise InputError("policy metadata holds a malformed record of its data, its members or its stages")


def _is_stage(stage: object) -> bool:
    if not isinstance(stage, dict) or not isinstance(stage.get("stage", ""), str):
        return False
    command = stage.get("command", [])
    return isinstance(command, list) and all(isinstance(word, str) for word in command)


def _without_retired(backbone: dict) -> dict:
    """A trunk's settings without those that are constants by now. Raises: InputError where a file has another value."""
    if other := {name: backbone[name] for name, value in RETIRED.items() if backbone.get(name, value) != value}:
        raise InputError(f"its trunk has {other}, and this SynthNet builds {RETIRED} only")
    return {name: value for name, value in backbone.items() if name not in RETIRED}


def _checked_statistics(found: dict) -> dict[str, list[float]]:
    for values in found.values():
        if len(values) != STATISTICS or not all(isinstance(x, int | float) and abs(x) < LARGEST_STATISTIC for x in values):
            raise InputError("policy metadata holds malformed statistics of a data set")
    return {name: [float(x) for x in values] for name, values in found.items()}
