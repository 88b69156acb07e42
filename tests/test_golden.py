"""What ships and what every stage computes stays as recorded (`golden/record.py`): to the bit where torch and the machine are
those of the record, else to 1e-5, or as LOOSE says."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
LOOSE = {  # what two processors round further apart: part of a place -> relative and absolute difference
    "/nearest_aligned/": (1e-5, 5e-4),  # of a net and its copy: a root of rounding
    "distil-new/": (1e-4, 1e-5),  # whitened logits: an inverse root of a covariance
}


def differences(old, new, exact: bool, where: str = "") -> list[str]:
    """The places in which two trees of figures differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new} - (set() if exact else {"sha256"}))
        return [line for key in keys for line in differences(old.get(key), new.get(key), exact, f"{where}/{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [line for i, pair in enumerate(zip(old, new, strict=True)) for line in differences(*pair, exact, f"{where}/{i}")]
    numbers = isinstance(old, int | float) and isinstance(new, int | float)
    relative, absolute = next((loose for part, loose in LOOSE.items() if part in where), (1e-5, 1e-5))
    same = math.isclose(old, new, rel_tol=relative, abs_tol=absolute) if numbers and not exact else old == new
    return [] if same else [f"{where}: {str(old)[:40]} became {str(new)[:40]}"]


@pytest.mark.slow
def test_what_ships_and_what_stages_measure_is_as_recorded(tmp_path):
    old = json.loads((GOLDEN / "record.json").read_text())
    made = tmp_path / "record.json"
    subprocess.run([sys.executable, GOLDEN / "record.py", "-o", made], check=True)
    new = json.loads(made.read_text())
    exact = all(old["machine"][part] == new["machine"][part] for part in ("torch", "cpu"))
    parts = ("synthesised", "measured")
    found = differences(*({part: each[part] for part in parts} for each in (old, new)), exact)
    assert not found, "\n".join(found[:20])


def test_a_change_is_seen():
    """The comparison finds a bit that moved where it may not, and what a machine may round otherwise is let pass."""
    old = {"a": [{"sha256": "x", "values": [1.0, 2.0]}]}
    near = {"a": [{"sha256": "y", "values": [1.0, 2.0 + 1e-6]}]}
    assert differences(old, near, exact=False) == []
    assert len(differences(old, near, exact=True)) == 2
    assert len(differences(old, {"a": [{"sha256": "y", "values": [1.0, 2.1]}]}, exact=False)) == 1
    assert len(differences(old, {"a": []}, exact=False)) == 1
    for place, passes in (("/a/mean", False), ("/a/nearest_aligned/mean", True)):
        assert (differences(1e-4, 3e-4, exact=False, where=place) == []) == passes
        assert len(differences(1e-4, 8e-4, exact=False, where=place)) == 1
