"""Weight files written from the text of the format, right and wrong in every part, against a reader of our own in twenty lines:
each is read to the bit, or refused in one line."""

import json
import os
import struct
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from synthnet.cli import main
from synthnet.errors import InputError
from synthnet.nets import read_weights
from synthnet.tasks import build_task

EXAMPLES = int(os.environ.get("FORMAT", "300"))  # FORMAT=5000 ./run test tests/test_format.py
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
KINDS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
         "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip

NAME = st.sampled_from(["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "module.fc1.weight", "x"]) | st.text(max_size=12)
JUNK = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.lists(st.integers(), max_size=3)
)


@st.composite
def files(draw) -> bytes:
    """A header of tensors one after the other, then perhaps one thing wrong with it, with the body, or with its length."""
    header, end = {}, 0
    for name in draw(st.lists(NAME, max_size=5, unique=True)):
        kind, shape = draw(st.sampled_from([*BYTES])), draw(st.lists(st.integers(0, 5), max_size=4))
        size = BYTES[kind]
        for n in shape:
            size *= n
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.dictionaries(st.text(max_size=10), st.text(max_size=10), max_size=3))
    body = draw(st.binary(min_size=end, max_size=end)) if draw(st.booleans()) else bytes(end)
    match draw(st.integers(0, 9)):
        case 0 if header:
            header[draw(st.sampled_from([*header]))] = draw(JUNK)
        case 1 if header:
            entry = header[draw(st.sampled_from([*header]))]
            entry[draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))] = draw(JUNK)
        case 2 if header:
            header[draw(st.sampled_from([*header]))].pop(draw(st.sampled_from(["dtype", "shape", "data_offsets"])), None)
        case 3:
            body += draw(st.binary(min_size=1, max_size=9))
        case 4:
            body = body[: draw(st.integers(0, len(body)))]
    text = json.dumps(header, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
    text += draw(st.sampled_from([b"", b" ", b"\0", b"\n", b"}", b" " * 7]))
    length = len(text) + draw(st.sampled_from([0, 0, 0, 0, 1, -1, 8, 2**63]))
    return struct.pack("<Q", max(length, 0)) + text + body


@st.composite
def damaged(draw) -> bytes:
    """A good file of a net that policies serve, with bytes changed, put in or taken out."""
    raw = bytearray(GOOD)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, min(len(raw) - 1, 500)))
        match draw(st.integers(0, 2)):
            case 0:
                raw[at] = draw(st.integers(0, 255))
            case 1:
                raw[at:at] = draw(st.binary(min_size=1, max_size=4))
            case 2:
                del raw[at : at + draw(st.integers(1, 4))]
    return bytes(raw)


def _good() -> bytes:
    task = build_task("digits-mlp")
    spec = task.network.spec
    return save({name: value.clone() for name, value in spec.unflatten(task.draw_start("user", [0])[0]).items()})


GOOD = _good()


def plainly_read(raw: bytes) -> dict[str, torch.Tensor]:
    """The format as its text has it: a length, a JSON header, the numbers. ValueError and others for what is not so."""
    (length,) = struct.unpack("<Q", raw[:8])
    header, body = json.loads(raw[8 : 8 + length].decode()), raw[8 + length :]
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            flat = torch.frombuffer(bytearray(body[begin:end]), dtype=KINDS[entry["dtype"]])
            found[name] = flat.reshape(entry["shape"])
    return found


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bytes(one.view(-1).view(torch.uint8).tolist()) == bytes(
        other.reshape(-1).view(torch.uint8).tolist())  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("format")


@settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(raw=files() | damaged())
def test_a_file_is_read_to_the_bit_or_refused(folder, raw):
    path = folder / "x.safetensors"
    path.write_bytes(raw)
    try:
        read = read_weights(path).tensors
    except InputError as error:
        assert "x.safetensors" in str(error)
        return
    plain = plainly_read(raw)
    assert set(read) == set(plain)
    assert all(same_bits(value, plain[name]) for name, value in read.items())


@settings(max_examples=EXAMPLES // 3, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(raw=damaged() | files())
def test_every_command_ends_in_words_and_writes_all_or_nothing(folder, raw):
    path, out = folder / "y.safetensors", folder / "out.safetensors"
    path.write_bytes(raw)
    out.unlink(missing_ok=True)
    for command in (["inspect", str(path)], ["synthesize", str(path), "-o", str(out), "--steps", "1"]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = main(command)
        assert code in (0, 2)
    assert out.exists() == (code == 0)
    if code == 0:
        made = read_weights(out).tensors
        assert {name: value.shape for name, value in made.items()} == {n: v.shape for n, v in plainly_read(raw).items()}
    assert {each.name for each in folder.iterdir()} <= {"x.safetensors", "y.safetensors", "out.safetensors"}
