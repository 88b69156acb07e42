"""Weights as images: the tensors come back bit for bit, and bad input is refused in one line."""

import numpy as np
import OpenEXR
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from synthnet.cli import main
from synthnet.errors import InputError
from synthnet.nets.exr import from_image, read_exr, to_image, write_exr
from synthnet.nets.weights import WeightState, read_metadata

TENSORS = {
    "conv.weight": torch.randn(3, 2, 5, 4),
    "fc.weight": torch.randn(4, 7),
    "fc.bias": torch.tensor([0.0, -0.0, 1e-42, torch.finfo(torch.float32).max]),
    "scalar": torch.tensor(1.5),
    "cube": torch.randn(2, 3, 4),
    "half": torch.randn(5).half(),
    "brain": torch.randn(2, 2).bfloat16(),
    "steps": torch.tensor([2**40, -1]),
}


def test_every_tensor_comes_back_bit_for_bit(tmp_path):
    write_exr(tmp_path / "w.exr", WeightState(TENSORS, {"synthnet.task": "x", "note": 'a "quoted" one'}))
    back = read_exr(tmp_path / "w.exr")
    assert back.metadata == {"synthnet.task": "x", "note": 'a "quoted" one'}
    assert set(back.tensors) == set(TENSORS)
    for name, value in TENSORS.items():
        found = back.tensors[name]
        assert found.dtype == value.dtype and found.shape == value.shape
        assert torch.equal(found, value)
    assert torch.signbit(back.tensors["fc.bias"])[1], "minus zero is another bit pattern"


def test_a_kernel_is_tiled_by_output_and_input():
    kernel = torch.arange(2 * 3 * 2 * 2).float().view(2, 3, 2, 2)
    image = to_image(kernel)
    assert image.shape == (4, 6)
    assert image.flags["C_CONTIGUOUS"]
    assert np.array_equal(image[2:4, 4:6], kernel[1, 2].numpy())
    assert torch.equal(from_image(image, kernel.shape), kernel)


def test_other_programs_see_one_part_per_tensor(tmp_path):
    write_exr(tmp_path / "w.exr", WeightState({"a": torch.ones(2, 3), "b": torch.zeros(5)}))
    parts = OpenEXR.File(str(tmp_path / "w.exr"), separate_channels=True).parts
    assert {part.name(): part.channels["Y"].pixels.shape for part in parts} == {"a": (2, 3), "b": (1, 5)}


def test_what_images_cannot_hold_is_refused(tmp_path):
    with pytest.raises(InputError, match="float64"):
        write_exr(tmp_path / "w.exr", WeightState({"a": torch.ones(2).double()}))
    with pytest.raises(InputError, match="no float tensor"):
        write_exr(tmp_path / "w.exr", WeightState({"a": torch.ones(2).long()}))
    assert not list(tmp_path.iterdir())


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / "junk.exr").write_bytes(b"junk")
    OpenEXR.File({}, {"Y": np.ones((2, 2), np.float32)}).write(str(tmp_path / "plain.exr"))
    for name, message in (
        ("junk", "not an OpenEXR file that"),
        ("plain", "not an OpenEXR file that"),
        ("none", "does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            read_exr(tmp_path / f"{name}.exr")


def test_the_command_draws_a_file_a_folder_and_a_sequence(tmp_path, tiny, policy, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--set", "hidden=[8]", "--count", "2", "-o", "inits"]) == 0
    policy.record = {"best_k": 2, "task": "digits-mlp"}
    policy.save("p.safetensors")
    start = "inits/digits-mlp-0000.safetensors"
    assert main(["exr", "inits", "-o", "pictures"]) == 0
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {
        "digits-mlp-0000.exr", "digits-mlp-0001.exr", "sheet.png", "sheet-moving.png"
    }  # fmt: skip
    assert main(["exr", start, "--policy", "p.safetensors", "-o", "sequence"]) == 0
    assert (tmp_path / "sequence" / "digits-mlp-0000-w2.exr").exists()
    with Image.open(tmp_path / "sequence" / "sheet-moving.png") as moving:
        assert moving.n_frames == 3
    assert main(["exr", "pictures/digits-mlp-0000.exr", "--import", "-o", "back.safetensors"]) == 0
    one, other = load_file(start), load_file("back.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert read_metadata(start) == read_metadata("back.safetensors")


def test_files_of_one_name_do_not_overwrite_each_other(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save_file({"w": torch.ones(2)}, f"{folder}/w.safetensors")
    assert main(["exr", "a/w.safetensors", "b/w.safetensors", "-o", "pictures"]) == 2
    assert "same name" in capsys.readouterr().err


def test_bad_use_exits_2(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"a": torch.ones(2)}, "a.safetensors")
    for command in (
        ["none.safetensors", "-o", "x"],
        ["a.safetensors", "-o", "a.safetensors"],
        ["a", "b", "--import", "-o", "x"],
    ):
        assert main(["exr", *command]) == 2
        assert capsys.readouterr().err.count("\n") == 1
