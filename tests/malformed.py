"""A generator of malformed `.safetensors` files: each a valid file with one thing wrong, drawn from a seed."""

import json
import random
import struct
from collections.abc import Callable

Mutation = Callable[[dict, bytes, random.Random], bytes]
NAMES = [
    "../../escape",
    "/etc/passwd",
    "",
    "\u202efc1",
    "fc1.weight\0",
    "😀" * 40,
    "a" * 5000,
    "fc1",
    "__metadata__x",
    "fc1/weight",
    "CON",
]
DTYPES = ["F64", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F99", "", 7, None, "F8_E5M2", "C64"]
SIZES = [2**63, 2**40, -1, 0, 1.5, "3", None, True, 10**30]


def split(raw: bytes) -> tuple[dict, bytes]:
    """Header and body of a valid file."""
    (size,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def joined(header: object, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _tensor(header: dict, rng: random.Random) -> str:
    return rng.choice([name for name in header if name != "__metadata__"])


def header_length(header, body, rng):
    raw = joined(header, body)
    length = rng.choice([0, 1, 2**63 - 1, 2**64 - 1, len(raw), len(raw) - 9, rng.randrange(2**40), rng.randrange(len(raw))])
    return struct.pack("<Q", length) + raw[8:]


def depth_bomb(header, body, rng):
    depth = rng.choice([50, 2000, 200_000])
    opening, closing = rng.choice([(b'{"a":', b"}"), (b"[", b"]")])
    bomb = opening * depth + b"1" + (closing * depth if rng.random() < 0.5 else b"")
    return joined(bomb if rng.random() < 0.5 else json.dumps(header).encode()[:-1] + b', "z": ' + bomb + b"}", body)


def offsets(header, body, rng):
    entry = header[_tensor(header, rng)]
    begin, end = entry["data_offsets"]
    entry["data_offsets"] = rng.choice(
        [
            [end, begin],
            [begin, end + 4],
            [begin + 4, end + 4],
            [begin, 2**62],
            [-4, end],
            [0, 4],
            [begin, begin],
            [begin],
            [begin, end, end],
            None,
            "0,4",
            [begin + 0.5, end],
            [len(body), len(body) + (end - begin)],
            {},
            [True, end],
        ]
    )
    return joined(header, body)


def duplicate(header, body, rng):
    name = _tensor(header, rng)
    text = json.dumps(header).encode()[:-1] + b", " + json.dumps({name: header[name]}).encode()[1:]
    return joined(text, body)


def shape(header, body, rng):
    entry = header[_tensor(header, rng)]
    place = rng.randrange(len(entry["shape"]))
    entry["shape"] = rng.choice(
        [
            [*entry["shape"][:place], rng.choice(SIZES), *entry["shape"][place + 1 :]],
            [],
            [[2, 3]],
            None,
            "10",
            [1] * 5000,
            entry["shape"][::-1],
            [2**32, 2**32],
            [0, 2**62],
            [*entry["shape"], 1],
        ]
    )
    return joined(header, body)


def dtype(header, body, rng):
    header[_tensor(header, rng)]["dtype"] = rng.choice(DTYPES)
    return joined(header, body)


def names(header, body, rng):
    name = _tensor(header, rng)
    header[rng.choice(NAMES)] = header.pop(name)
    return joined(header, body)


def missing_or_extra(header, body, rng):
    if rng.random() < 0.5:
        del header[_tensor(header, rng)]
        return joined(header, body)
    header["extra"] = {"dtype": "F32", "shape": [2], "data_offsets": [len(body), len(body) + 8]}
    return joined(header, body + struct.pack("<ff", 1.0, rng.choice([2.0, float("nan")])))


def entries(header, body, rng):
    header[_tensor(header, rng)] = rng.choice([None, 1, "x", [], {}, {"dtype": "F32"}, {"dtype": "F32", "shape": [1]}])
    return joined(header, body)


def metadata(header, body, rng):
    arch = {"builder": "mlp", "kwargs": {"sizes": [64, 32, 10]}, "version": 1}
    bad = [
        {**arch, "builder": "os.system"},
        {**arch, "kwargs": {"sizes": [2**40, 10]}},
        {**arch, "kwargs": {"sizes": "x"}},
        {**arch, "version": 99},
        {**arch, "kwargs": {"_target_": "os.system"}},
        {**arch, "kwargs": {"sizes": [64, 8, 10]}},
        [],
        3,
        {"builder": ["mlp"]},
    ]
    header["__metadata__"] = rng.choice(
        [
            {"synthnet.arch": json.dumps(rng.choice(bad))},
            {"synthnet.arch": "{" * 3000},
            {"synthnet.arch": 3},
            [],
            "x",
            {"a": None},
            {"a": {"b": 1}},
            {"synthnet.task": "../../x"},
            {"synthnet.task": "digits-mlp", "synthnet.seed": "-" * 100},
            {"x" * 10_000: "y" * 100_000},
            {"synthnet.provenance": "[" * 100},
            {"synthnet.policy": "{}"},
            {"synthnet.policy": json.dumps({"format": 2})},
        ]
    )
    return joined(header, body)


def trailing(header, body, rng):
    return joined(header, body + bytes(rng.choice([1, 4, 4096])))


def truncated(header, body, rng):
    raw = joined(header, body)
    return raw[: rng.choice([0, 1, 7, 8, 9, rng.randrange(len(raw)), len(raw) - 1])]


def flips(header, body, rng):
    raw = bytearray(joined(header, body))
    limit = rng.choice([len(raw), len(raw) - len(body)])
    for _ in range(rng.choice([1, 3, 30])):
        raw[rng.randrange(limit)] ^= 1 << rng.randrange(8)
    return bytes(raw)


def not_finite(header, body, rng):
    place = 4 * rng.randrange(len(body) // 4)
    return joined(
        header,
        body[:place] + struct.pack("<f", rng.choice([float("nan"), float("inf"), -float("inf"), 3e38])) + body[place + 4 :],
    )


def noise(header, body, rng):
    return rng.randbytes(rng.choice([0, 3, 8, 100, 5000]))


def text(header, body, rng):
    return rng.choice([b"{}", b"PK\x03\x04", b"\x80\x04\x95", b"<html>", b"null", b"\xff\xfe{}", "ünïcode".encode("utf-16")])


MUTATIONS: tuple[Mutation, ...] = (
    header_length,
    depth_bomb,
    offsets,
    duplicate,
    shape,
    dtype,
    names,
    missing_or_extra,
    entries,
    metadata,
    trailing,
    truncated,
    flips,
    not_finite,
    noise,
    text,
)


def mutant(raw: bytes, number: int) -> tuple[str, bytes]:
    """The name of the mutation and the bytes of malformed file `number`."""
    rng = random.Random(number)
    header, body = split(raw)
    mutation = MUTATIONS[number % len(MUTATIONS)]
    return mutation.__name__, mutation(header, body, rng)
