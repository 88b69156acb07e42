"""The run directory: one owner at a time, whole lines only, cut back on resume."""

import json

import pytest
import torch

from conftest import setup_at
from synthnet.errors import InputError
from synthnet.runs.directory import RunDirectory


def test_a_run_has_one_owner_at_a_time(tmp_path):
    with RunDirectory(setup_at(tmp_path / "run", text="a: 1\n")), pytest.raises(InputError, match="in use by another process"):
        RunDirectory(setup_at(tmp_path / "run", text="a: 1\n"))
    with RunDirectory(setup_at(tmp_path / "run", text="a: 1\n")):
        pass  # free again


def test_a_run_keeps_its_configuration(tmp_path):
    with RunDirectory(setup_at(tmp_path / "run", text="a: 1\n")):
        pass
    with pytest.raises(InputError, match="another configuration"):
        RunDirectory(setup_at(tmp_path / "run", text="a: 2\n"))
    assert (tmp_path / "run" / "config.yaml").read_text() == "a: 1\n"


def test_a_half_written_last_line_is_dropped_and_metrics_are_cut_back(tmp_path):
    with RunDirectory(setup_at(tmp_path / "run", text="")) as run:
        for update in range(1, 5):
            run.log(update, {"loss": update / 2})
        with (run.path / "metrics.jsonl").open("a") as file:
            file.write('{"update": 5, "lo')
        assert [row["update"] for row in run.metrics()] == [1, 2, 3, 4]
        run.cut_back(2)
        assert [json.loads(line)["loss"] for line in (run.path / "metrics.jsonl").read_text().splitlines()] == [0.5, 1.0]


def test_checkpoints_come_back_as_they_were(tmp_path):
    with RunDirectory(setup_at(tmp_path / "run", text="")) as run:
        assert run.load_checkpoint() is None
        run.save_checkpoint({"a/b": torch.tensor([1.5, -2.0])}, 7, {"score": -float("inf")})
        tensors, update, record = run.load_checkpoint()
    assert torch.equal(tensors["a/b"], torch.tensor([1.5, -2.0]))
    assert update == 7
    assert record["score"] == -float("inf")


def test_a_full_disk_is_one_clear_message(tmp_path, monkeypatch):
    with RunDirectory(setup_at(tmp_path / "run", text="")) as run:

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(type(run.path), "open", full)
            with pytest.raises(InputError, match="No space left"):
                run.log(1, {})


def test_a_place_that_cannot_be_a_run_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot use"):
        RunDirectory(setup_at(tmp_path / "file", text=""))
