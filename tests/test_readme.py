"""The documents: links lead somewhere, generated parts are up to date, the example of the README runs."""

import re
from pathlib import Path

from safetensors.torch import save_file

import synthnet
from conftest import load_benchmark
from synthnet.tasks import build_task

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / name for name in ("README.md", "LOG.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)


def test_the_readme_is_short_and_every_relative_link_leads_somewhere():
    assert len(README.splitlines()) <= 120
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())]
    assert len(links) > 50
    assert [(page.name, link) for page, link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_the_results_page_and_the_table_of_the_readme_are_what_the_files_say():
    rendered = load_benchmark("results").rendered()
    stale = [path.name for path, text in rendered.items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "made anew by: python benchmarks/results.py"


def test_every_file_that_contributing_names_is_there():
    rooms = (ROOT / "CONTRIBUTING.md").read_text().split("## The rooms")[1].split("## Conventions")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*)$", rooms, flags=re.MULTILINE)
    assert len(rows) == 8
    named = [(room, name) for room, row in rows for name in re.findall(r"\b\w+(?:\.py|/)(?=[` :])", row)]
    assert len(named) >= 15
    assert [(room, name) for room, name in named if not (ROOT / "src" / "synthnet" / room / name).exists()] == []


def test_the_python_example_runs_and_reaches_its_claim(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    task = build_task("digits-mlp")
    start = task.network.spec.unflatten(task.draw_start("user", [123])[0])
    save_file({name: value.clone() for name, value in start.items()}, "random.safetensors")
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert "'accuracy': 0.9" in capsys.readouterr().out
    assert synthnet.evaluate("random.safetensors")[0]["accuracy"] < 0.4
