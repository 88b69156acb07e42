"""What files and policies are, in words: evaluations and descriptions as tables."""

import sys
from pathlib import Path

from synthnet.bundled import known_archs
from synthnet.console import accuracy_row, percent, table
from synthnet.engine import Variants, find_arch, network_of
from synthnet.errors import InputError, one_line
from synthnet.nets import Arch, WeightState, metadata_json, read_header, read_metadata
from synthnet.policy import build_layout, read_policy
from synthnet.policy.tokens import chunk

LAID_OUT = 1 << 27  # weights up to which tokens are built to be counted
SHOWN = 400  # characters of a name or a value in metadata; --json has all of it


def print_evaluation(results: list[dict]) -> None:
    value = lambda r: percent(r["value"]) if "accuracy" in r else f"{r['value']:.4f}"  # noqa: E731
    loss = lambda r: f"{r['loss']:.4f}" if "loss" in r else ""  # noqa: E731
    rows = [[r["file"], r["task"], r["split"] or "", str(r["n"]), r["metric"], value(r), loss(r)] for r in results]
    table("evaluation", ["file", "task", "split", "examples", "metric", "value", "loss"], rows)


def print_policy(report: dict) -> None:
    """A policy's accuracy by synth step beside start weights and SGD twins, with identity ratios."""
    if "sgd_twins" not in report:
        _print_rewards(report)
        return
    rows = [accuracy_row("start weights", report["start"], "", "")]
    for n_steps, row in report["steps"].items():
        ratio = row["identity"]["aligned_distance"]["ratio"]
        rows.append(accuracy_row(f"K = {n_steps}", row["accuracy"], percent(row["share_of_sgd"]), f"{ratio:.2f}"))
    rows.append(accuracy_row("SGD twins", report["sgd_twins"], percent(1.0), "1.00"))
    if "strong_twins" in report:
        share = report["strong_twins"]["mean"] / report["sgd_twins"]["mean"]
        rows.append(accuracy_row("strong twins", report["strong_twins"], percent(share), ""))
    title = f"{report['task']}: {report['seeds']} unseen seeds, {report['n_images']} {report['split']} examples"
    table(
        title, ["weights", f"{report['metric']}, mean ± sd", "worst", "best", "share of SGD", "aligned distance / SGD's"], rows
    )


def _print_rewards(report: dict) -> None:
    steps = {"start weights": report["start"], **{f"K = {k}": row["accuracy"] for k, row in report["steps"].items()}}
    rows = [[name, *(f"{stats[key]:.4g}" for key in ("mean", "sd", "min", "max"))] for name, stats in steps.items()]
    title = f"{report['task']}: {report['seeds']} unseen seeds, {report['n_images']} draws"
    table(title, ["weights", "reward, mean", "sd", "worst", "best"], rows)


def describe_file(path: str | Path, like: Arch | None = None) -> dict:
    """What a weight file or a policy file holds; `like` as in `netfiles.open_net`."""
    policy = metadata_json(read_metadata(path), "synthnet.policy", path)
    if policy and "config" in policy:
        loaded = read_policy(path)
        return {"kind": "policy", "file": str(path), "parameters": loaded.n_parameters, **policy}
    state = read_header(path)
    arch, names = find_arch(state, path, like, known_archs())
    ours = {own: name for name, own in names.items()}
    state = WeightState({ours.get(name, name): value for name, value in state.tensors.items()}, state.metadata)
    tensors = [
        {"name": n, "shape": list(v.shape), "dtype": str(v.dtype).removeprefix("torch.")} for n, v in state.tensors.items()
    ]
    found = {
        "kind": "weights",
        "file": str(path),
        "n_weights": state.spec.n_weights,
        "tensors": tensors,
        "metadata": state.metadata,
        "architecture": "unknown" if arch is None else str(arch),
        "arch": None if arch is None else arch.to_dict(),
    }
    chunks = {"scheme": "chunk", "tokens": chunk.count(state.spec)}
    if arch is None or state.spec.n_weights > LAID_OUT:
        why = "its names and shapes tell no architecture" if arch is None else f"more than {LAID_OUT:,} weights"
        print(f"chunk tokens only: {why}", file=sys.stderr)
        return {**found, "groups": {}, "tokens": chunks}
    net, groups, axes = network_of(arch), {}, {}
    try:
        groups = dict(net.symmetry.groups)
        for piece in net.symmetry.pieces:
            axes.setdefault(piece.tensor, []).append({"axes": list(piece.groups), "sizes": list(piece.index.shape)})
        layout = build_layout({"name": "unit"}, net.spec, net.symmetry)
        edges = sum(edge.index.shape[0] * edge.index.shape[1] for edge in layout.edges)
        tokens = {"scheme": "unit", "tokens": layout.n_tokens, "features": layout.n_features, "edges": edges}
    except InputError as error:
        print(f"chunk tokens only: {error}", file=sys.stderr)
        tokens = chunks
    return {**found, "groups": groups, "axes": axes, "tokens": tokens}


def _groups(piece: dict) -> str:
    axes = zip(piece["axes"], piece["sizes"], strict=True)
    return " x ".join(f"{group or 'fixed'} {size}" for group, size in axes) or "fixed"


def print_description(found: dict) -> None:
    if found["kind"] == "policy":
        config = found["config"]
        rows = [
            ["parameters", f"{found['parameters']:,}"],
            ["backbone", str(config["backbone"])],
            ["tokens", str(config["tokens"])],
            ["action", str(config["action"])],
            ["k_max / best K", f"{config['k_max']} / {found['record'].get('best_k')}"],
            ["task", str(found["record"].get("task"))],
            *([["told", Variants.from_json(found["spec"]).shown]] if "spec" in found else []),
            ["trained on", ", ".join(str(Arch.from_dict(arch)) for arch in found["archs"])],
            *[
                [f"stage {i}", f"{s.get('stage')}: {' '.join(s.get('command', []))}"]
                for i, s in enumerate(found["record"].get("stages", []), 1)
            ],
        ]
        table(found["file"], ["policy", ""], rows)
        return
    axes = found.get("axes", {})
    rows = [
        [t["name"], str(t["shape"]), t["dtype"], " + ".join(_groups(piece) for piece in axes.get(t["name"], []))]
        for t in found["tensors"]
    ]
    table(f"{found['file']}: {found['n_weights']:,} weights", ["tensor", "shape", "dtype", "unit group of each axis"], rows)
    print(one_line(f"architecture {found['architecture']}; unit groups {found['groups']}; tokens {found['tokens']}"))
    for key, value in found["metadata"].items():
        print(f"{one_line(key, SHOWN)} = {one_line(value, SHOWN)}")
