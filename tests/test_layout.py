"""The structure of the code: who may import whom, who may read the test split, how long a file may get."""

import ast
from pathlib import Path

import pytest

import synthnet

ROOT = Path(synthnet.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# A module imports only from lines above its own; plug-in folders stand where their packages do.
ORDER = [
    ["errors", "seeds", "interrupt"],
    ["journal", "lab", "optimizer", "ranks", "variation"],
    ["user_code"],
    ["device", "figures", "files", "progress", "modules", "workers", "forms", "axes", "executors"],
    ["parts", "weights", "runs", "data", "plan", "knobs", "population_rules", "axis_rules"],
    ["arch", "user_arch", "chain", "batched", "start"],
    ["symmetry", "gradients"],
    ["tracing"],
    ["functional"],
    ["identity", "tokens", "queries", "action", "grpo", "rewards"],
    ["tasks"],
    ["backbones", "population", "imagined"],
    ["critic"],
    ["status"],
    ["policy", "zoo", "prompts", "netfiles"],
    ["policy_file"],
    ["tracking", "rollout", "trainable", "sampling", "signal", "live"],
    ["expert_roles"],
    ["validation", "synthesis", "scoring", "reward_hook", "snapshot", "patching"],
    ["forking"],
    ["guards"],
    ["training", "policy_gradient"],
    ["grpo_settings"],
    ["experience", "role_noise"],
    [
        "train_pairs",
        "train_grpo",
        "train_critic",
        "calibrate",
        "exr",
        "evaluation",
        "novelty",
        "baselines",
        "connectivity",
        "sequence",
    ],
    ["measured"],
    ["train_distil", "train_corrupt", "calibrate", "audit"],
    ["config", "report", "verdicts", "sweep"],
    ["knob_table", "sweep_report"],
    ["audit_page"],
    ["audit_run"],
    ["policy_start"],
    ["stages"],
    ["demo", "runs_table"],
    ["control"],
    ["commands", "lab_commands"],
    ["cli"],
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def _module(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("synthnet.")]
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("synthnet"):
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    here = _module(path)
    if here == "__init__":
        return
    for imported in _imports(path):
        assert imported == here or RANK[imported] < RANK[here], f"{here} must not import {imported}"


def test_every_module_has_a_place_in_the_order():
    assert {_module(path) for path in FILES} - {"__init__"} == set(RANK)


def test_only_evaluation_reads_the_test_split():
    for path in FILES:
        calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        called = {call.attr for call in calls if isinstance(call, ast.Attribute)}
        assert "test_data" not in called or path.name == "evaluation.py"
        assert not {"_select", "split_indices"} & called or path == ROOT / "tasks" / "__init__.py"
    readers = {_module(path) for path in FILES if "evaluation" in set(_imports(path))}
    reporters = {"report", "demo", "commands", "measured", "audit", "audit_run", "verdicts", "__init__"}
    assert readers <= reporters, "trainers must not reach evaluation"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= 300
    assert path.stem not in {"utils", "common", "helpers", "misc", "base", "core", "manager"}


def test_nothing_unpickles():
    for path in FILES:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                assert not {"pickle", "dill", "joblib", "shelve"} & set(names)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" and k.value.value is True for k in node.keywords)
