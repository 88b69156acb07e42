"""The benchmark of the GPU path runs, and compares, where there is no GPU."""

import json
import sys

import pytest

from conftest import load_benchmark


@pytest.mark.slow
def test_the_cpu_is_the_same_as_itself_and_nothing_is_copied(tmp_path, monkeypatch):
    gpu, out = load_benchmark("gpu"), tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--tasks", "digits-mlp", "--nets", "3", "--updates", "2",
                                      "-o", str(out)])  # fmt: skip
    assert gpu.main() == 0
    found = json.loads(out.read_text())["tasks"]["digits-mlp"]
    assert found.pop("copies") == 0
    assert set(found) == {"synthesis", "engine", "pairs", "distil", "grpo"}
    assert all(row["apart"] == 0 and row["cpu_seconds"] > 0 for row in found.values())
    numbers = iter((1.0, 1.01))
    other = gpu.compare(lambda place: {"seconds": 1.0, "value": gpu.torch.tensor(next(numbers))}, [None, None])
    assert other["apart"] == pytest.approx(0.01, rel=0.02)
    assert not other["same"]
