"""The package as a stranger gets it: a wheel that works where it is installed, a typed face, versions that agree."""

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import synthnet

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_wheel_is_built_installed_and_runs_the_demo(tmp_path):
    """Its own copy of everything: nothing is imported from the checkout."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"synthnet-{synthnet.__version__}-py3-none-any")
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {Path(name).stem for name in names if name.startswith("synthnet/policies/") and name.endswith(".safetensors")}
    assert shipped == set(synthnet.policies())
    assert "synthnet/py.typed" in names and not any("tests" in name for name in names)
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    env = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    where = "import synthnet; print(synthnet.__file__)"
    found = subprocess.run([sys.executable, "-c", where], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(site))
    command = [sys.executable, "-m", "synthnet.cli", "demo", "--nets", "2", "-o", tmp_path / "out", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "demo.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_public_face_is_typed(tmp_path):
    """Ours by our own settings; and a stranger's program, whose mistake is found."""
    checked = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    program = tmp_path / "program.py"
    program.write_text(
        "import synthnet\nstate = synthnet.synthesize('a.safetensors', steps=2)\n"
        "names: list[str] = synthnet.policies()\nwrong: int = synthnet.policies()\n"
    )
    found = subprocess.run([sys.executable, "-m", "mypy", program], cwd=tmp_path, capture_output=True, text=True).stdout
    assert found.count("error:") == 1 and "program.py:4" in found, found


def test_benchmarks_call_what_is_there():
    """Names and arguments by type inference: most benchmarks take too long to be run by tests, and calls of them had rotted."""
    programs = sorted((ROOT / "benchmarks").glob("*.py"))
    command = [sys.executable, "-m", "mypy", "--check-untyped-defs", *map(str, programs)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert re.search(rf"\b{len(programs)} source files", found), found
    rot = re.compile(r"\[(call-arg|name-defined)\]|Module \".*has no attribute|error: \"(Task|Policy|Network|Zoo)\" has no")
    rotten = [line for line in found.splitlines() if rot.search(line)]
    for program in programs:  # modules that are gone are silence to a checker that ignores what has no types
        names = re.findall(r"^\s*from (synthnet[\w.]*) import|^\s*import (synthnet[\w.]*)", program.read_text(), re.M)
        rotten += [f"{program.name}: {one or two}" for one, two in names if importlib.util.find_spec(one or two) is None]
    assert not rotten, "\n".join(rotten)


def test_the_version_and_the_changelog_agree():
    assert f"## {synthnet.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_help_does_not_load_torch():
    """Breaks if anything that the parser needs imports it, directly or through a room's face."""
    code = (
        "import sys\nfrom synthnet.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules, 'loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "synthesize" in done.stdout


def test_the_face_is_what_it_says():
    assert set(dir(synthnet)) == set(synthnet.__all__)
    for name in synthnet.__all__:
        assert getattr(synthnet, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        synthnet.nothing  # noqa: B018


def test_without_the_locks_of_posix_runs_say_so_in_one_line(monkeypatch, tmp_path):
    from synthnet.errors import InputError
    from synthnet.runs.journal import append

    monkeypatch.setattr("synthnet.files.fcntl", None)
    with pytest.raises(InputError, match="use WSL or a container"):
        append(tmp_path / "j", {"a": 1})
