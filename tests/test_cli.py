"""The command line as a stranger meets it: files in and out, JSON, exit codes, one-line errors, nothing overwritten."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import make_policy
from synthnet.cli import main
from synthnet.nets.weights import read_weights
from synthnet.tasks import build_task


@pytest.fixture
def folder(tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    policy = make_policy(tiny)
    policy.record = {"best_k": 2, "task": "digits-mlp"}
    policy.save("policy.safetensors")
    for seed, flat in enumerate(tiny.draw_start("user", [0, 1, 2])):
        save_file({n: v.clone() for n, v in tiny.network.spec.unflatten(flat).items()}, f"start{seed}.safetensors")
    return tmp_path


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_one_file_in_one_file_out(folder, capsys):
    code, _, _ = run(capsys, "synthesize", "start0.safetensors", "-o", "new.safetensors", "--policy", "policy.safetensors")
    assert code == 0
    before, after = load_file("start0.safetensors"), load_file("new.safetensors")
    assert {n: v.shape for n, v in after.items()} == {n: v.shape for n, v in before.items()}
    assert not torch.equal(before["fc1.weight"], after["fc1.weight"])
    code, out, err = run(capsys, "inspect", "new.safetensors", "--json")
    assert code == 0, err
    found = json.loads(out)
    provenance = json.loads(found["metadata"]["synthnet.provenance"])
    assert provenance["steps"] == 2, "the policy's recorded best K"
    assert set(provenance) == {"policy_sha256", "steps", "start_sha256"}
    assert found["groups"] == {"hidden1": 8}
    assert found["n_weights"] == 610


def test_a_folder_in_a_folder_out_and_each_net_is_its_own(folder, capsys):
    (folder / "in").mkdir()
    for seed in range(3):
        (folder / f"start{seed}.safetensors").rename(folder / "in" / f"start{seed}.safetensors")
    code, _, _ = run(capsys, "synthesize", "in", "-o", "made", "--policy", "policy.safetensors", "--steps", 1)
    assert code == 0
    outputs = [load_file(f"made/start{seed}.safetensors")["fc1.weight"] for seed in range(3)]
    assert not torch.allclose(outputs[0], outputs[1])
    run(
        capsys, "synthesize", "in/start1.safetensors", "-o", "alone.safetensors", "--policy", "policy.safetensors", "--steps", 1
    )
    assert torch.allclose(load_file("alone.safetensors")["fc1.weight"], outputs[1], atol=1e-6)


def test_sampling_is_seeded(folder, capsys):
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(
            capsys,
            "synthesize",
            "start0.safetensors",
            "-o",
            f"{name}.safetensors",
            "--policy",
            "policy.safetensors",
            "--sample",
            seed,
        )
        made.append(load_file(f"{name}.safetensors")["fc1.weight"])
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_come_back_as_they_were(folder, capsys, dtype):
    save_file({n: v.to(dtype) for n, v in load_file("start0.safetensors").items()}, "typed.safetensors")
    code, _, _ = run(capsys, "synthesize", "typed.safetensors", "-o", "new.safetensors", "--policy", "policy.safetensors")
    assert code == 0
    assert {value.dtype for value in load_file("new.safetensors").values()} == {dtype}


def test_init_sgd_and_evaluate(folder, capsys):
    assert run(capsys, "init", "--task", "digits-mlp", "--seed", 3, "--count", 2, "-o", "inits")[0] == 0
    assert run(capsys, "init", "--seed", 3, "-o", "one.safetensors")[0] == 0
    assert torch.equal(load_file("one.safetensors")["fc2.bias"], load_file("inits/digits-mlp-0003.safetensors")["fc2.bias"])
    assert run(capsys, "sgd", "inits", "-o", "twins")[0] == 0
    code, out, _ = run(capsys, "evaluate", "inits", "twins", "--json", "--split", "val")
    assert code == 0
    results = json.loads(out)["results"]
    assert [set(row) for row in results] == [{"file", "task", "split", "n", "metric", "value", "accuracy", "loss"}] * 4
    assert all(row["accuracy"] < 0.4 for row in results[:2])
    assert all(row["accuracy"] > 0.9 for row in results[2:])
    assert results[0]["n"] == 100


def test_evaluating_a_policy_reports_every_step_beside_its_controls(folder, capsys):
    arguments = ["evaluate", "--policy", "policy.safetensors", "--seeds", 4, "--steps", 1, 3, "--split", "val", "--json"]
    code, out, _ = run(capsys, *arguments)
    report = json.loads(out)
    assert code == 0
    assert set(report["steps"]) == {"1", "3"}
    assert report["sgd_twins"]["mean"] > 0.8 > report["start"]["mean"]
    assert run(capsys, *arguments[:-1])[0] == 0


def _spoil(folder, kind):
    """Make one bad input; returns the arguments of the command that meets it."""
    good = load_file("start0.safetensors")
    synth = ["synthesize", "bad.safetensors", "-o", "kept.safetensors", "--policy", "policy.safetensors"]
    if kind == "absent":
        return synth
    if kind == "empty":
        (folder / "bad.safetensors").write_bytes(b"")
    elif kind == "truncated":
        (folder / "bad.safetensors").write_bytes((folder / "start0.safetensors").read_bytes()[:-8])
    elif kind == "pickle":
        torch.save(good, "bad.safetensors")
    elif kind == "shapes":
        save_file({**good, "fc2.bias": torch.zeros(11)}, "bad.safetensors")
    elif kind == "names":
        save_file({f"layer.{n}": v for n, v in good.items() if n != "fc1.bias"}, "bad.safetensors")
    elif kind == "foreign":
        net = build_task("mnist5k-mlp").network.spec
        save_file({t.name: torch.zeros(t.shape) for t in net.tensors}, "bad.safetensors")
    elif kind == "nan":
        save_file({**good, "fc2.bias": torch.full((10,), float("nan"))}, "bad.safetensors")
    elif kind == "integer":
        save_file({**good, "fc2.bias": torch.zeros(10, dtype=torch.int64)}, "bad.safetensors")
    elif kind == "one-of-many":
        save_file({"x": torch.tensor([float("nan")])}, "bad.safetensors")
        return ["synthesize", "start0.safetensors", "bad.safetensors", "-o", "made", "--policy", "policy.safetensors"]
    elif kind == "no-files":
        (folder / "bare").mkdir()
        return ["synthesize", "bare", "-o", "made", "--policy", "policy.safetensors"]
    elif kind == "folder-out":
        (folder / "made").mkdir()
        return ["synthesize", "start0.safetensors", "-o", "made", "--policy", "policy.safetensors"]
    elif kind == "no-such-place":
        return ["synthesize", "start0.safetensors", "-o", "nowhere/new.safetensors", "--policy", "policy.safetensors"]
    elif kind == "zero-steps":
        return ["synthesize", "start0.safetensors", "-o", "kept.safetensors", "--policy", "policy.safetensors", "--steps", "0"]
    elif kind == "not-a-policy":
        return ["synthesize", "start0.safetensors", "-o", "kept.safetensors", "--policy", "start1.safetensors"]
    elif kind == "unknown-policy":
        return ["synthesize", "start0.safetensors", "-o", "kept.safetensors", "--policy", "digit-mlp"]
    elif kind == "unknown-task":
        return ["init", "--task", "digit-mlp", "-o", "x.safetensors"]
    elif kind == "unknown-setting":
        return ["grpo", "grpo.groups=3"]
    elif kind == "no-policy":
        return ["grpo", "task.hidden=[8]"]
    elif kind == "no-zoo":
        return ["pairs", "zoo_dir=nothing"]
    elif kind == "builder":
        save_file(good, "bad.safetensors", metadata={"synthnet.arch": json.dumps({"builder": "os.system", "kwargs": {}})})
    return synth


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("absent", "does not exist"),
        ("empty", "is empty"),
        ("truncated", "not a valid .safetensors"),
        ("pickle", "pickle"),
        ("shapes", "fc2.bias"),
        ("names", "of no net known here"),
        ("foreign", "fc1.weight is [10, 784], expected [8, 64]"),
        ("nan", "NaN"),
        ("integer", "int64 numbers"),
        ("one-of-many", "NaN"),
        ("no-files", "without .safetensors"),
        ("folder-out", "name the output file"),
        ("no-such-place", "does not exist; make it first"),
        ("zero-steps", "steps must lie in 1..64"),
        ("not-a-policy", "not a policy file"),
        ("unknown-policy", "unknown policy"),
        ("unknown-task", "did you mean 'digits-mlp'"),
        ("unknown-setting", "unknown setting 'grpo.groups'"),
        ("no-policy", "policy_from"),
        ("no-zoo", "not a finished zoo"),
        ("builder", "unknown architecture builder"),
    ],
)
def test_bad_input_exits_2_with_one_line_and_overwrites_nothing(folder, capsys, kind, message):
    (folder / "kept.safetensors").write_bytes(b"precious")
    code, out, err = run(capsys, *_spoil(folder, kind))
    assert code == 2
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("warning:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in err
    assert (folder / "kept.safetensors").read_bytes() == b"precious"
    assert not (folder / "made").exists() or not list((folder / "made").iterdir())


@pytest.mark.filterwarnings("default:.*never trained on")
def test_too_many_steps_and_unseen_widths_warn_but_work(folder, capsys):
    wide = build_task("digits-mlp", hidden=[12])
    save_file(
        {n: v[0].clone() for n, v in wide.network.spec.unflatten(wide.draw_start("user", [0])).items()}, "wide.safetensors"
    )
    code, _, err = run(
        capsys, "synthesize", "wide.safetensors", "-o", "new.safetensors", "--policy", "policy.safetensors", "--steps", 9
    )
    assert code == 0
    assert "never trained on" in err
    assert "above the policy's k_max" in err


def test_a_bare_file_of_the_wrong_architecture_is_compared_with_the_task(folder, capsys):
    arguments = ["synthesize", "start0.safetensors", "-o", "new.safetensors", "--policy", "policy.safetensors", "--task"]
    code, _, err = run(capsys, *arguments, "mnist5k-mlp")
    assert code == 2
    assert "fc1.weight is [8, 64], expected [10, 784]" in err
    code, _, err = run(capsys, *arguments, "digits-mlp")
    assert code == 0, "the task decides the kind of net; its widths are the file's own"


def test_config_prints_what_a_command_would_use(capsys):
    code, out, _ = run(capsys, "config", "task=mnist5k-mlp", "grpo.beta=0.5")
    assert code == 0
    assert "beta: 0.5" in out
    assert "name: mnist5k-mlp" in out


ISOLATED = """
import builtins, socket, sys
banned = ("sklearn", "mlxtend", "torchvision", "datasets", "hydra", "urllib3", "requests", "synthnet.data", "synthnet.tasks")
real = builtins.__import__
def guarded(name, *rest, **kwargs):
    if name.startswith(banned):
        raise AssertionError(f"inference imported {name}")
    return real(name, *rest, **kwargs)
builtins.__import__ = guarded
class Refusing(socket.socket):
    def __init__(self, *_, **__): raise AssertionError("inference opened a socket")
socket.socket = Refusing
import synthnet
state = synthnet.synthesize("start0.safetensors", policy="policy.safetensors", steps=2, out="new.safetensors")
assert not [name for name in sys.modules if name.startswith(banned)]
print("done", len(state.tensors))
"""


@pytest.mark.slow
def test_inference_opens_no_data_set_and_no_network(folder):
    """A process in which sockets, data packages and every data reader of ours are blocked."""
    done = subprocess.run([sys.executable, "-c", ISOLATED], capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done 4"
    control = ISOLATED.replace("import synthnet\n", "import synthnet, synthnet.data\n")
    failed = subprocess.run([sys.executable, "-c", control], capture_output=True, text=True, cwd=folder, check=False)
    assert "inference imported synthnet.data" in failed.stderr, "the guard itself must bite"


def _edited_policy(edit):
    """The fixture's policy file with its metadata changed."""
    from synthnet.files import write_safetensors

    state = read_weights("policy.safetensors")
    record = json.loads(state.metadata["synthnet.policy"])
    edit(record)
    write_safetensors("edited.safetensors", state.tensors, {"synthnet.policy": json.dumps(record)})


@pytest.mark.parametrize(
    "edit",
    [
        lambda r: r.update(record=None),
        lambda r: r.update(record={"best_k": 0}),
        lambda r: r.update(record={"best_k": 10**6}),
        lambda r: r.update(record={"stages": [1]}),
        lambda r: r.update(format=99),
        lambda r: r.pop("config"),
        lambda r: r["config"].update(k_max=10**9),
        lambda r: r["config"]["backbone"].update(dim=-4),
        lambda r: r["config"]["backbone"].update(heads=0),
        lambda r: r["config"]["backbone"].update(name="os"),
        lambda r: r["config"]["tokens"].update(name="..policy"),
        lambda r: r["config"]["action"].update(sigma="x"),
        lambda r: r.update(vocabulary={"edge": 1}),
        lambda r: r["archs"][0].update(kwargs={"sizes": [64, 10**9, 10]}),
        lambda r: r["archs"][0].update(builder="eval"),
    ],
)
def test_edited_policy_metadata_is_refused_in_one_line(folder, capsys, edit):
    _edited_policy(edit)
    code, _, err = run(capsys, "synthesize", "start0.safetensors", "-o", "new.safetensors", "--policy", "edited.safetensors")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert not (folder / "new.safetensors").exists()


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"a": torch.zeros(0, 3)}, {}),
        ({"fc01.weight": torch.zeros(2, 3)}, {}),
        ({"x[/b]": torch.zeros(2)}, {"synthnet.arch": "[" * 100_000}),
        ({"a": torch.zeros(2)}, {"synthnet.arch": json.dumps({"builder": "mlp", "kwargs": {"sizes": [2**62, 2**62, 10]}})}),
        ({"a": torch.zeros(2)}, {"synthnet.arch": json.dumps({"builder": "mlp", "kwargs": {"builder": 1}})}),
        ({"a": torch.zeros(2)}, {"synthnet.arch": json.dumps({"builder": "mlp", "kwargs": {"sizes": "abc"}})}),
    ],
)
def test_hostile_weight_files_are_refused_in_one_line(folder, capsys, tensors, metadata):
    save_file(tensors, "bad.safetensors", metadata=metadata)
    code, _, err = run(capsys, "synthesize", "bad.safetensors", "-o", "new.safetensors", "--policy", "policy.safetensors")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "bad.safetensors" in err


def test_inspect_tells_an_unknown_net_from_a_known_one_and_escapes_names(folder, capsys):
    save_file({"x[/b]": torch.zeros(5), "n": torch.arange(3)}, "odd[red].safetensors")
    code, out, _ = run(capsys, "inspect", "odd[red].safetensors")
    assert code == 0
    assert "x[/b]" in out
    assert "unknown" in out
    code, _, err = run(capsys, "inspect", "start0.safetensors", "--task", "mnist5k-mlp")
    assert code == 2
    assert "fc1.weight is [8, 64], expected [10, 784]" in err


def test_a_float16_overflow_is_refused_before_anything_is_written(folder, capsys):
    save_file({n: v.half() for n, v in load_file("start0.safetensors").items()}, "half.safetensors")
    with torch.no_grad():
        policy = make_policy(build_task("digits-mlp", hidden=[8]))
        policy.trunk.head.bias += 1e6
        policy.save("loud.safetensors")
    code, _, err = run(capsys, "synthesize", "half.safetensors", "-o", "new.safetensors", "--policy", "loud.safetensors")
    assert code == 2
    assert "nothing was written" in err
    assert not (folder / "new.safetensors").exists()


def test_the_twins_of_a_synthesised_file_carry_no_foreign_provenance(folder, capsys):
    run(capsys, "synthesize", "start0.safetensors", "-o", "new.safetensors", "--policy", "policy.safetensors")
    run(capsys, "sgd", "new.safetensors", "-o", "twin.safetensors")
    _, out, _ = run(capsys, "inspect", "twin.safetensors", "--json")
    assert "synthnet.provenance" not in json.loads(out)["metadata"]


@pytest.mark.filterwarnings("default:.*never trained on")
def test_a_cnn_goes_through_every_use_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = build_task("mnist5k-cnn")
    assert task.arch.spec().n_weights == 2698
    assert run(capsys, "init", "--task", "mnist5k-cnn", "-o", "a.safetensors")[0] == 0
    save_file(load_file("a.safetensors"), "bare.safetensors")
    code, out, _ = run(capsys, "evaluate", "bare.safetensors", "--task", "mnist5k-cnn", "--split", "val", "--json")
    assert code == 0 and json.loads(out)["results"][0]["n"] == 250
    code, out, _ = run(capsys, "evaluate", "bare.safetensors", "--split", "val", "--json")
    assert code == 0 and json.loads(out)["results"][0]["task"] == "mnist5k-cnn", "a net that a policy here was trained on"
    code, out, _ = run(capsys, "inspect", "a.safetensors", "--json")
    assert code == 0 and json.loads(out)["tokens"] == {"scheme": "unit", "tokens": 25, "features": 110, "edges": 128}
    assert run(capsys, "synthesize", "bare.safetensors", "-o", "b.safetensors", "--task", "mnist5k-cnn")[0] == 0
    _, out, _ = run(
        capsys, "evaluate", "bare.safetensors", "b.safetensors", "--task", "mnist5k-cnn", "--split", "val", "--json"
    )
    start, made = (row["accuracy"] for row in json.loads(out)["results"])
    assert start < 0.3 < 0.9 < made
    run(capsys, "init", "--task", "digits-resnet", "--set", "blocks=3", "-o", "other.safetensors")
    code, _, err = run(capsys, "synthesize", "other.safetensors", "-o", "c.safetensors")
    assert code == 2 and "no bundled policy" in err
    two = [run(capsys, "init", "--task", "mnist5k-cnn", "--set", "channels=[7,9]", "--count", "2", "-o", "unseen")[0]]
    code, _, err = run(capsys, "synthesize", "unseen", "-o", "made")
    assert two == [0] and code == 0 and err.count("never trained on") == 1, "one word for each architecture, not for each file"
    code, _, err = run(capsys, "pairs", "task=mnist5k-cnn", "zoo_dir=nowhere")
    assert code == 2 and len(err.strip().splitlines()) == 1


def test_widths_are_settings_of_a_task(folder, capsys):
    assert run(capsys, "init", "--task", "mnist5k-cnn", "--set", "channels=[3,5]", "-o", "c.safetensors")[0] == 0
    assert read_weights("c.safetensors").tensors["conv2.weight"].shape == (5, 3, 3, 3)
    code, _, err = run(capsys, "init", "--task", "mnist5k-cnn", "--set", "channel=[3,5]", "-o", "d.safetensors")
    assert code == 2
    assert "did you mean 'channels'" in err
    for wrong in ("hidden=48", "hidden=null", "hidden=[1.5]", "hidden={}", "split_seed=3"):
        code, _, err = run(capsys, "init", "--set", wrong, "-o", "d.safetensors")
        assert code == 2 and err.count("\n") == 1, wrong
    code, _, err = run(capsys, "init", "--set", "hidden", "-o", "d.safetensors")
    assert code == 2
    assert "KEY=VALUE" in err
