"""The structure of the code: rooms in the order of the data, who may import whom, who may read the test split."""

import ast
import sys
from pathlib import Path

import synthnet

ROOT = Path(synthnet.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
GROUND = ["errors", "seeds", "device", "files", "progress", "workers", "console", "settings"]  # knows nothing of nets
ROOMS = ["nets", "engine", "tasks", "policy", "runs", "train", "grpo", "audit"]  # a room knows those before it
TOP = ["stages", "config", "lab", "commands", "cli"]  # what people call, in the same order
PLUGINS = ["tasks.problems", "tasks.data", "policy.tokens", "policy.trunks", "policy.queries", "policy.steps"]
PLUGINS += ["runs.executors", "grpo.rewards"]
ORDER = [*ROOMS[:4], "bundled", "synthesis", *ROOMS[4:], *TOP]  # synthesis needs a policy, and nothing of its training
RANK = {name: rank for rank, name in enumerate(ORDER)}
EMPTY = {"utils", "common", "helpers", "misc", "base", "core", "manager", "forms", "parts", "measured"}


def place(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path, inside_functions: bool = True):
    """The modules of ours that a file imports, below `synthnet.`; those inside functions only where asked for."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if inside_functions else tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "synthnet":
            below = node.module.partition(".")[2]
            yield from [below] if below else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from [alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("synthnet.")]


def broken(path: Path) -> list[str]:
    """The imports of a file that point the wrong way, or past a room's face into its private files."""
    here, found = place(path), []
    for module in imports(path):
        there, _, inner = module.partition(".")
        if there == here or there in GROUND or module == "__version__":
            continue
        backwards = here in GROUND or RANK[there] >= RANK[here]
        plugin = any(f"{module}.".startswith(f"{name}.") for name in PLUGINS)
        private = there in ROOMS and inner and not plugin and here in ROOMS
        found += [f"{here} must not import {module}"] if backwards or private else []
    return found


def test_imports_point_one_way_and_through_faces(tmp_path, monkeypatch):
    assert [line for path in FILES if path != ROOT / "__init__.py" for line in broken(path)] == []
    monkeypatch.setattr("test_layout.ROOT", tmp_path)
    (tmp_path / "nets").mkdir()
    wrong = tmp_path / "nets" / "wrong.py"
    wrong.write_text("from synthnet.grpo import train_grpo\nfrom synthnet.engine.network import score\nimport synthnet.cli\n")
    assert len(broken(wrong)) == 3


def test_every_file_has_a_place_and_a_name_that_says_something():
    assert {place(path) for path in FILES} == {*GROUND, *ORDER, "__init__"}
    assert len(list(ROOT.glob("*.py"))) <= 14
    for path in FILES:
        name = path.stem.strip("_")
        assert name not in EMPTY, path
        assert path.stem not in {*sys.stdlib_module_names} - {"__init__", "chunk"}, path  # tokens=chunk is what people type
        assert len(path.read_text().splitlines()) <= 300, path


def test_only_evaluation_reads_the_test_split():
    for path in FILES:
        calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        called = {call.attr for call in calls if isinstance(call, ast.Attribute)}
        assert "test_data" not in called or path == ROOT / "audit" / "evaluation.py"
        assert not {"_select", "split_indices"} & called or path in (ROOT / "tasks" / "task.py", ROOT / "tasks" / "source.py")
    readers = {place(path) for path in FILES if any(module.startswith("audit") for module in imports(path))}
    assert readers <= {"audit", "commands", "__init__"}, "trainers must not reach evaluation"


def test_settings_are_parsed_and_yaml_is_read_in_one_place_each():
    """Paths and settings never pass through a parser of ours as text."""
    splitters = {path.name for path in FILES if 'partition("=")' in path.read_text()}
    assert splitters <= {"use.py", "config.py"}, "flags NAME=VALUE of use commands; the one parser of settings"
    readers = {path.relative_to(ROOT).as_posix() for path in FILES if "yaml.safe_load" in path.read_text()}
    assert readers <= {"runs/status.py", "runs/tracking.py"}


def test_nothing_unpickles():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                assert not {"pickle", "dill", "joblib", "shelve"} & set(names)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" and k.value.value is True for k in node.keywords)


def test_the_grpo_loop_is_one_file_that_one_can_read():
    """The loop, and what an update passes through beside it: sampling, scoring, the objective, the steps, the shared loop."""
    assert len((ROOT / "grpo" / "loop.py").read_text().splitlines()) <= 250
    names = ["grpo/loop", "grpo/sample", "grpo/score", "grpo/objective", "policy/rollout", "train/loop"]
    assert all((ROOT / f"{name}.py").is_file() for name in names)
    loops = [path for path in FILES if "policy.land(" in path.read_text() or ".land(state" in path.read_text()]
    assert loops == [ROOT / "policy" / "rollout.py"], "there is one loop over synth steps"
