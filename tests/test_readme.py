"""The README names every source file, and its Python example runs."""

import re
from pathlib import Path

import pytest
from safetensors.torch import save_file

import synthnet
from synthnet.tasks.task import build_task

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "src" / "synthnet").rglob("*.py")), ids=lambda path: path.name)
def test_the_tree_names_every_source_file(path):
    tree = README[README.index("## Files") :]
    assert path.name == "__init__.py" or re.search(rf"[\s(]{re.escape(path.name)}[\s,;]", tree), path.name


def test_every_relative_link_of_the_readme_leads_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_the_python_example_runs_and_reaches_its_claim(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    task = build_task("digits-mlp")
    start = task.network.spec.unflatten(task.draw_start("user", [123])[0])
    save_file({name: value.clone() for name, value in start.items()}, "random.safetensors")
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert "'accuracy': 0.9" in capsys.readouterr().out
    assert synthnet.evaluate("random.safetensors")[0]["accuracy"] < 0.4
