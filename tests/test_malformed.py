"""Malformed files through every command that reads them: exit 2 and one line, or exit 0 and a correct result.

MALFORMED=5000 sets how many weight files are tried (the suite tries 320).
"""

import json
import os
import random
import resource
import subprocess
import sys
import time
import warnings

import pytest

from conftest import make_policy
from malformed import MUTATIONS, mutant
from synthnet.cli import main
from synthnet.lab.fork import run_command
from synthnet.nets.weights import read_weights

COUNT = int(os.environ.get("MALFORMED", "320"))
SECONDS, MEGABYTES = 20.0, 400  # the most CPU time that one file may take, and that all may add to the memory of the process


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("malformed")
    assert main(["init", "--task", "digits-mlp", "-o", str(path / "base.safetensors")]) == 0
    return path


def _run(arguments, capsys):
    began = time.process_time()  # of this process: what else the machine does costs nothing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = main(list(map(str, arguments)))
    said = capsys.readouterr()
    assert time.process_time() - began < SECONDS, arguments
    lines = [line for line in said.err.splitlines() if line.startswith("synthnet: ")]
    assert code in (0, 2), (arguments, code)
    assert len(lines) == (1 if code == 2 else 0), (arguments, said.err)
    assert len(said.err) < 2000
    return code


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_malformed_weight_files_end_in_one_line_or_a_correct_result(folder, capsys):
    """No crash, no hang, no memory beyond a bound, nothing written but the output."""
    raw = (folder / "base.safetensors").read_bytes()
    work = folder / "work"
    work.mkdir()
    file, codes = work / "m.safetensors", {}
    commands = {
        "inspect": ["inspect", file],
        "synthesize": ["synthesize", file, "-o", work / "out.safetensors", "--policy", "digits-mlp", "--steps", "1"],
        "evaluate": ["evaluate", file, "--task", "digits-mlp", "--split", "val"],
        "exr": ["exr", file, "-o", work / "pictures"],
    }
    if COUNT <= 320:
        commands.pop("exr")  # figures are slow; the long form draws them
    file.write_bytes(raw)
    assert {_run(arguments, capsys) for arguments in commands.values()} == {0}
    (work / "out.safetensors").unlink()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(COUNT):
        kind, data = mutant(raw, number)
        file.write_bytes(data)
        for name, arguments in commands.items():
            code = _run(arguments, capsys)
            codes.setdefault(kind, set()).add(code)
            if name == "synthesize":
                assert (work / "out.safetensors").exists() == (code == 0), (kind, number)
                if code == 0:
                    made, given = read_weights(work / "out.safetensors"), read_weights(file)
                    assert made.spec == given.spec
                    (work / "out.safetensors").unlink()
        assert {path.name for path in work.iterdir()} <= {"m.safetensors", "pictures"}, (kind, number)
    assert set(codes) == {mutation.__name__ for mutation in MUTATIONS}
    assert {kind for kind, found in codes.items() if 2 not in found} <= {"names"}, "known by shapes, or refused"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES


@pytest.mark.slow
def test_malformed_files_as_real_processes(folder):
    raw = (folder / "base.safetensors").read_bytes()
    for number in range(0, COUNT, max(1, COUNT // (100 if COUNT > 320 else 4))):
        kind, data = mutant(raw, number)
        (folder / "p.safetensors").write_bytes(data)
        done = subprocess.run(
            [sys.executable, "-m", "synthnet.cli", "inspect", str(folder / "p.safetensors")],
            capture_output=True,
            timeout=60,
            text=True,
        )
        assert done.returncode in (0, 2), (kind, number, done.stderr)
        assert "Traceback" not in done.stderr


def test_malformed_policies_end_in_one_line(folder, tmp_path, tiny, capsys):
    make_policy(tiny).save(tmp_path / "good.safetensors")
    raw, bad = (tmp_path / "good.safetensors").read_bytes(), tmp_path / "bad.safetensors"
    start = tmp_path / "start.safetensors"
    assert main(["init", "--task", "digits-mlp", "--set", "hidden=[8]", "-o", str(start)]) == 0
    refused = 0
    for number in range(COUNT // 2):
        bad.write_bytes(mutant(raw, number)[1])
        refused += _run(["synthesize", start, "-o", tmp_path / "o.safetensors", "--policy", bad, "--steps", "1"], capsys) == 2
        _run(["inspect", bad], capsys)
    assert refused > 0.7 * (COUNT // 2)


JUNK = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"\xff\xfe",
    b'{"arch": 3}',
    b"{" * 5000,
    b"a: [1\n b",
    b'{"command": "x"}',
    b'{"command": [1]}',
    b"\0" * 100,
]


@pytest.mark.filterwarnings("ignore:outputs of different seeds", "ignore:.*is damaged")
@pytest.mark.slow
def test_malformed_run_directories_and_zoos_end_in_one_line(tmp_path, tiny, capsys):
    zoo = tmp_path / "zoo"
    small = ["task.hidden=[8]", "threads=1", "lab.tensorboard=false"]
    run_command("zoo", [*small, "zoo.runs=2", "zoo.heldout=2", "zoo.shard=2", f"run_dir={zoo}"])
    make_policy(tiny).save(tmp_path / "p.safetensors")
    quick = [*small, "grpo.prompts=2", "grpo.num_generations=4", "grpo.val_seeds=2", "grpo.loop.updates=1", "reward.batch=32"]
    run = tmp_path / "run"
    grpo = ["grpo", *quick, f"policy_from={tmp_path / 'p.safetensors'}", f"run_dir={run}"]
    assert main(grpo) == 0
    capsys.readouterr()
    pairs = [
        "pairs",
        *small,
        f"zoo_dir={zoo}",
        f"run_dir={tmp_path / 'pairs'}",
        "pairs.loop.updates=1",
        "pairs.val_seeds=2",
        "backbone.dim=16",
    ]
    targets = [
        (run / "run.json", [["runs", "show", run], ["runs", "resume", run], ["fork", run, "seed=1", "-o", tmp_path / "f"]]),
        (run / "config.yaml", [["runs", "compare", run, run], grpo]),
        (run / "metrics.jsonl", [["runs", "show", run], grpo]),
        (run / "applied.jsonl", [["runs", "show", run], grpo]),
        (run / "checkpoints" / "training.safetensors", [grpo]),
        (zoo / "zoo.json", [pairs]),
        (zoo / "index.jsonl", [pairs]),
        (zoo / "states-00001.safetensors", [pairs]),
    ]
    rng = random.Random(0)
    for path, commands in targets:
        good = path.read_bytes() if path.exists() else None
        for junk in rng.sample(JUNK, 4):
            path.write_bytes(junk)
            for command in commands:
                assert _run(command, capsys) in (0, 2), (path.name, junk)
            path.unlink() if good is None else path.write_bytes(good)
    (zoo / "index.jsonl").write_text(
        json.dumps({"run": 0, "purpose": "zoo", "seed": 0, "shard": "../x", "row": 0, "epochs": [0]}) + "\n"
    )
    assert _run(pairs, capsys) == 2
