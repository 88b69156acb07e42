"""Files: what is written is what was given, whatever its strides; modes, links, long names, paths that look like settings."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from synthnet.cli import main
from synthnet.config import compose, parse, read_config
from synthnet.engine.netfiles import write_all
from synthnet.errors import InputError
from synthnet.files import raw_bytes, write_atomic, write_safetensors
from synthnet.lab.serve.view import run_folder
from synthnet.lab.space import parse_space
from synthnet.nets import WeightState
from synthnet.runs import list_runs
from synthnet.runs.directory import digest

STRIDED = [
    torch.zeros(2, dtype=torch.float64)[::2][:1],
    torch.arange(12.0)[::3][:1],
    torch.arange(24.0).view(2, 3, 4)[:, ::3, ::4],
    torch.arange(6, dtype=torch.int32).view(2, 3).t(),
    torch.arange(5).as_strided((1, 5), (7, 1)),
    torch.empty(0, 3)[:, ::2],
    torch.tensor(3.5),
    torch.tensor(3.5).expand(2, 3),
    torch.arange(4.0)[1:3],
    torch.tensor([True, False, True])[::2],
]


@pytest.mark.parametrize("number", range(len(STRIDED)))
def test_any_stride_is_written_as_the_library_writes_its_plain_copy(number, tmp_path):
    value = STRIDED[number]
    write_safetensors(tmp_path / "mine.safetensors", {"x": value})
    assert torch.equal(load_file(tmp_path / "mine.safetensors")["x"], value)
    plain = torch.tensor(value.tolist(), dtype=value.dtype).reshape(value.shape)
    assert bytes(raw_bytes(value)) == plain.numpy().tobytes()
    assert digest({"x": value}) == digest({"x": plain})


@pytest.mark.slow
def test_a_zoo_with_a_shard_of_one_run_is_made_and_resumed(tmp_path):
    settings = ["task=digits-mlp", "task.hidden=[8]", "zoo.runs=2", "zoo.heldout=1", "zoo.shard=2", f"run_dir={tmp_path}/zoo"]
    assert main(["zoo", *settings]) == 0
    made = {path.name: path.read_bytes() for path in (tmp_path / "zoo").glob("*.safetensors")}
    assert len(made) == 2
    assert main(["zoo", *settings]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "zoo").glob("*.safetensors")} == made


def test_a_new_file_has_the_mode_that_the_umask_leaves_and_a_replaced_one_keeps_its_own(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "new", "1")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640
    (tmp_path / "new").chmod(0o604)
    write_atomic(tmp_path / "new", "2")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o604
    assert (tmp_path / "new").read_text() == "2"


def test_links_are_written_through_and_one_to_itself_is_refused(tmp_path):
    (tmp_path / "real").write_text("1")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomic(tmp_path / "link", "2")
    assert (tmp_path / "real").read_text() == "2"
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "self").symlink_to(tmp_path / "self")
    with pytest.raises(InputError, match="cannot write"):
        write_atomic(tmp_path / "self", "3")


@pytest.mark.parametrize("length", [200, 251, 255])
def test_names_as_long_as_the_system_allows_are_written(tmp_path, length):
    write_atomic(tmp_path / ("x" * length), "1")
    assert [path.name for path in tmp_path.iterdir()] == ["x" * length]
    with pytest.raises(InputError, match="cannot write"):
        write_atomic(tmp_path / ("é" * 128), "1")


PATHS = [
    "/x/josé (1) a=b",
    "a b",
    "{1}",
    "[2]",
    "a,b",
    "x:y",
    "~/z",
    "$HOME",
    "a#b",
    "'",
    'q"',
    "é=ü",
    "null ",
    "tag(1)",
    "-1",
    "\\",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_taken_as_it_stands(path):
    for name in ("run_dir", "zoo_dir", "policy_from", "task.data_dir", "pairs.corruptor"):
        assert parse([f"{name}={path}"]) == {name: path}
        assert parse_space([f"{name}={path}", "seed=1,2"])[1] == {name: path}
        assert parse([f"{name}='{path}'"]) == {name: path}


def test_null_is_no_path_and_nothing_is_refused():
    assert parse(["zoo_dir=null"]) == {"zoo_dir": None}
    with pytest.raises(InputError, match="names no path"):
        parse(["run_dir="])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:outputs of different seeds")
@pytest.mark.parametrize("name", ["josé (1) a=b", "[x],{y:1}", 'c\'est "ici" #2'])
def test_runs_in_such_folders_fork_replay_resume_and_sweep(name, tmp_path, tiny):
    from conftest import make_policy

    root = tmp_path / name
    root.mkdir()
    make_policy(tiny).save(root / "p.safetensors")
    quick = ["task=digits-mlp", "task.hidden=[8]", "threads=1", "grpo.prompts=2", "grpo.num_generations=4", "grpo.steps=[1]",
             "reward.batch=32", "grpo.val_seeds=2", "grpo.signal_every=0", "grpo.loop.updates=2", "grpo.loop.validate_every=1",
             "lab.tensorboard=false", f"policy_from={root}/p.safetensors"]  # fmt: skip
    assert main(["grpo", *quick, f"run_dir={root}/run"]) == 0
    assert main(["fork", f"{root}/run", "grpo.prompts=3", "-o", f"{root}/fork (2)"]) == 0
    assert main(["fork", f"{root}/run", "--replay"]) == 0
    assert main(["runs", "resume", f"{root}/run"]) == 0
    assert main(["sweep", *quick, "stages=[grpo]", "grpo.epsilon=0.1,0.2", f"run_dir={root}/sweep"]) == 0
    assert (root / "sweep" / "trial-0001" / "grpo" / "policy.safetensors").exists()
    original, replay = (load_file(folder / "policy.safetensors") for folder in (root / "run", root / "run-2"))
    assert all(torch.equal(original[key], replay[key]) for key in original)


def test_a_damaged_weight_file_keeps_the_one_that_was_there(tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    before = (tmp_path / "x.safetensors").read_bytes()

    def parts():
        yield b"half"
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left"):
        write_atomic(tmp_path / "x.safetensors", parts())
    assert (tmp_path / "x.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("path", ["${x}", "a\\${HOME}", "${oc.env:HOME}/b", "x${", "\\\\${y}\\"])
def test_a_path_with_an_interpolation_in_it_is_that_path(path, tmp_path):
    """${…} would be looked up by the settings library, when composed and again when a run's record is read."""
    config = compose({"task": "digits-mlp", "zoo_dir": path, "reward.python": [f"{path}.py:f"]})
    assert config.zoo_dir == path
    assert config.reward.python == [f"{path}.py:f"]
    (tmp_path / "config.yaml").write_text(config.text(config.build_task()))
    (tmp_path / "run.json").write_text('{"command": []}')
    assert read_config(tmp_path).zoo_dir == path


def test_what_the_format_has_no_word_for_is_refused(tmp_path):
    with pytest.raises(InputError, match="keeps the name"):
        write_safetensors(tmp_path / "a.safetensors", {"__metadata__": torch.zeros(1)})
    with pytest.raises(InputError, match="holds complex64 numbers"):
        write_safetensors(tmp_path / "a.safetensors", {"w": torch.zeros(1, dtype=torch.complex64)})
    assert not list(tmp_path.iterdir())


def test_links_that_lead_out_or_to_themselves_are_no_runs(tmp_path):
    root = tmp_path / "runs"
    for folder in (root / "own", tmp_path / "other"):
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("")
        (folder / "run.json").write_text('{"command": []}')
    (root / "self").symlink_to(root / "self")
    (root / "out").symlink_to(tmp_path / "other")
    (root / "alias").symlink_to(root / "own")
    assert {status.name for status in list_runs(root)} == {"own", "alias"}
    assert run_folder(root, "alias") == root / "alias"
    for name in ("self", "out"):
        with pytest.raises(InputError, match="no run of that name"):
            run_folder(root, name)


def test_several_results_are_written_or_the_refusal_names_the_one_that_cannot(tmp_path):
    states = [WeightState({"w": torch.full((2,), float(number))}, {}) for number in range(40)]
    targets = [tmp_path / "made" / f"{number}.safetensors" for number in range(40)]
    write_all(targets, states, single=False)
    assert [load_file(target)["w"][0].item() for target in targets] == list(range(40))
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        write_all(targets, states[:3], single=False)
    (tmp_path / "made" / "in-the-way.safetensors").mkdir()
    with pytest.raises(InputError, match=r"in-the-way.safetensors: it is a folder"):
        write_all([targets[0], tmp_path / "made" / "in-the-way.safetensors"], states[:2], single=False)
    assert not list((tmp_path / "made").glob(".*.tmp"))
