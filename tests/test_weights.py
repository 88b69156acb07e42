import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from synthnet import files
from synthnet.errors import InputError
from synthnet.files import DTYPES
from synthnet.nets.weights import WeightSpec, WeightState, read_weights, write_weights

STATUS = Path("/proc/self/status")


class WithBuffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_file_round_trip_is_bit_exact(tmp_path, dtype):
    tensors = {"b": torch.randn(3, 4, dtype=dtype), "a": torch.randn(2, dtype=dtype), "n": torch.tensor(7)}
    write_weights(tmp_path / "w.safetensors", WeightState(tensors, {"synthnet.seed": "3"}))
    again = read_weights(tmp_path / "w.safetensors")
    assert again.metadata["synthnet.seed"] == "3"
    for name, value in tensors.items():
        assert again.tensors[name].dtype == value.dtype
        assert torch.equal(again.tensors[name], value)


def test_flatten_is_inverted_exactly_with_leading_axes():
    spec = WeightSpec.of_module(nn.Linear(3, 2))
    flat = torch.randn(5, 4, spec.n_weights)
    assert spec.n_weights == 8
    assert torch.equal(spec.flatten(spec.unflatten(flat)), flat)


def test_spec_knows_parameters_buffers_and_integers():
    roles = {t.name: (t.role, t.integer) for t in WeightSpec.of_module(WithBuffers()).tensors}
    assert roles["fc.weight"] == ("parameter", False)
    assert roles["norm.running_mean"] == ("buffer", False)
    assert roles["norm.num_batches_tracked"] == ("buffer", True)


def test_integer_tensors_pass_through_and_dtypes_are_kept():
    spec = WeightSpec.of_module(WithBuffers())
    tensors = {n: v.half() if v.is_floating_point() else v + 5 for n, v in WithBuffers().state_dict().items()}
    new = WeightState(tensors).replaced(spec, torch.zeros(spec.n_weights), {})
    assert new.tensors["norm.num_batches_tracked"] == 5
    assert new.tensors["fc.weight"].dtype == torch.float16
    assert not new.tensors["fc.weight"].any()


def test_differences_name_every_mismatch():
    expected = WeightSpec.of_tensors({"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)})
    found = WeightSpec.of_tensors({"a": torch.zeros(4), "c": torch.zeros(1, dtype=torch.int64), "d": torch.zeros(1)})
    text = "; ".join(expected.differences(found))
    for part in ("missing b [3]", "unexpected d [1]", "a is [4], expected [2]", "c holds integers"):
        assert part in text
    assert expected.differences(expected) == []


def _bad_files(folder):
    good = {"a": torch.randn(64)}
    save_file(good, folder / "good.safetensors")
    raw = (folder / "good.safetensors").read_bytes()
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "truncated.safetensors").write_bytes(raw[:-30])
    (folder / "lying.safetensors").write_bytes(struct.pack("<Q", 10**9) + raw[8:])
    (folder / "junk.safetensors").write_bytes(b"hello, this is not it")
    torch.save(good, folder / "torch.safetensors")
    save_file({"a": torch.tensor([1.0, float("nan")])}, folder / "nan.safetensors")
    save_file({"a": torch.tensor([1.0, float("inf")])}, folder / "inf.safetensors")
    header = b'{"a":{"dtype":"F32","shape":[999],"data_offsets":[0,8]}}'
    (folder / "sizes.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "does not exist"),
        ("empty", "is empty"),
        ("truncated", "not a valid .safetensors"),
        ("lying", "header reaches past the end"),
        ("junk", "safetensors"),
        ("torch", "pickle, a zip or a torch.save"),
        ("nan", "NaN or infinite"),
        ("inf", "NaN or infinite"),
        ("sizes", "not a valid .safetensors"),
    ],
)
def test_bad_files_get_one_clear_message(tmp_path, name, message):
    _bad_files(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read_weights(tmp_path / f"{name}.safetensors")
    assert f"{name}.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_header_length_that_looks_like_a_pickle_is_read(tmp_path):
    """A header of 640 bytes starts with 0x80 0x02, as a pickle does."""
    from synthnet.files import safetensors_parts

    for padding in range(700):
        raw = b"".join(safetensors_parts({"a": torch.ones(2)}, {"x": "y" * padding}))
        if raw[:2] == b"\x80\x02":
            break
    (tmp_path / "w.safetensors").write_bytes(raw)
    assert raw[:2] == b"\x80\x02"
    assert torch.equal(read_weights(tmp_path / "w.safetensors").tensors["a"], torch.ones(2))


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        read_weights(tmp_path)


def test_a_killed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    write_weights(path, WeightState({"a": torch.ones(3)}))

    def die(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", die)
    with pytest.raises(InputError, match="No space left"):
        write_weights(path, WeightState({"a": torch.zeros(3)}))
    assert torch.equal(load_file(path)["a"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_our_files_are_those_of_the_library_but_for_the_order_in_the_header(tmp_path):
    """Every data type, scalars, names beyond ASCII; and no copy of the whole is made on the way."""
    kinds = tuple(DTYPES)
    tensors = {f"{chr(122 - i)}é{kind}": torch.arange(3 + i).to(kind) for i, kind in enumerate(kinds)}
    tensors |= {"scalar": torch.tensor(2.5), "turned": torch.arange(6.0).view(2, 3).T}
    files.write_safetensors(tmp_path / "ours.safetensors", tensors, {"b": "ü", "a": "1"})
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, tmp_path / "theirs.safetensors", {"b": "ü", "a": "1"}
    )
    read = load_file(tmp_path / "ours.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in tensors.items())
    headers = []
    for name in ("ours", "theirs"):
        raw = (tmp_path / f"{name}.safetensors").read_bytes()
        (size,) = struct.unpack("<Q", raw[:8])
        headers.append(
            {k: {**v, "data_offsets": None} if k != "__metadata__" else v for k, v in json.loads(raw[8 : 8 + size]).items()}
        )
    assert headers[0] == headers[1]
    parts = list(files.safetensors_parts({"a": (value := torch.ones(5))}, {}))
    value[2] = 7.0
    assert bytes(parts[1]) == value.numpy().tobytes(), "the parts are the tensors' own memory"


READING = """
from pathlib import Path
import sys
from synthnet.nets.weights import read_weights

def private_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

def mapped(address):
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(end, 16) for end in line.split()[0].split("-"))
        if low <= address < high:
            return line.endswith(sys.argv[1])

read_weights(sys.argv[2])
before = private_bytes()
held = read_weights(sys.argv[1]).tensors["a"]
assert mapped(held.data_ptr()), "the tensor is the file"
assert private_bytes() - before < 4 << 20, private_bytes() - before
assert held.sum() == 0
"""


@pytest.mark.skipif(not STATUS.exists(), reason="the system does not say what a process holds")
@pytest.mark.slow
def test_reading_maps_the_file_and_copies_nothing(tmp_path):
    """64 MiB of weights, and not a sixteenth of that in private memory; in a process of its own, whose allocator has kept
    nothing from before."""
    big, small = tmp_path / "big.safetensors", tmp_path / "small.safetensors"
    files.write_safetensors(big, {"a": torch.zeros(1 << 24)})
    files.write_safetensors(small, {"a": torch.zeros(8)})
    done = subprocess.run([sys.executable, "-c", READING, str(big), str(small)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
