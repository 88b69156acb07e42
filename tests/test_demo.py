"""The demo with a tiny policy: what it writes, and that its table tells start weights, synthesis and SGD apart."""

import pytest
import torch

from conftest import make_policy
from synthnet.commands import demo
from synthnet.errors import InputError
from synthnet.nets.weights import read_weights
from synthnet.tasks import build_task


def test_demo_leaves_files_a_table_and_a_figure(tmp_path, monkeypatch, capsys):
    task = build_task("digits-mlp")
    policy = make_policy(task)
    policy.record = {"best_k": 2, "task": "digits-mlp"}
    policy.save(tmp_path / "p.safetensors")
    monkeypatch.setattr(demo, "find_policy", lambda arch: (tmp_path / "p.safetensors", []))
    demo.demo("digits-mlp", 3, str(tmp_path / "out"), rebuild=False, distil=False, device="cpu")
    printed = capsys.readouterr().out
    for words in ("start weights", "synthesised, K = 1", "synthesised, K = 2", "SGD twins, 40 epochs"):
        assert words in printed
    assert (tmp_path / "out" / "demo.png").stat().st_size > 10_000
    for folder in ("start", "synthesised-k1", "synthesised-k2"):
        files = sorted((tmp_path / "out" / folder).glob("*.safetensors"))
        assert len(files) == 3
        assert read_weights(files[0]).spec.n_weights == 2410


def test_the_demo_also_shows_a_cnn(tmp_path, monkeypatch, capsys):
    """Its bare files name no architecture, and its first layer is no grid of pixels."""
    task = build_task("mnist5k-cnn")
    policy = make_policy(task)
    policy.record = {"best_k": 1, "task": "mnist5k-cnn"}
    policy.save(tmp_path / "p.safetensors")
    monkeypatch.setattr(demo, "find_policy", lambda arch: (tmp_path / "p.safetensors", []))
    monkeypatch.setattr(demo, "sgd_states", lambda task, starts, device: torch.stack([starts, 0.9 * starts], 1))
    demo.demo("mnist5k-cnn-family", 2, str(tmp_path / "out"), rebuild=False, distil=False, device="cpu")
    assert "synthesised, K = 2" in capsys.readouterr().out
    assert (tmp_path / "out" / "demo.png").stat().st_size > 10_000


def test_distil_goes_with_train():
    with pytest.raises(InputError, match="--train"):
        demo.demo("digits-mlp", 4, "out", rebuild=False, distil=True, device="cpu")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:outputs of different seeds", "ignore:half-batch gradients")
@pytest.mark.parametrize("distil", [False, True])
def test_a_policy_is_rebuilt_from_nothing(tmp_path, monkeypatch, distil):
    """The stages of the demo's experiment, with next to no budget."""
    tiny = ["task.hidden=[8]", "zoo.runs=4", "zoo.heldout=4", "zoo.shard=4", "backbone.dim=16", "backbone.depth=1",
            "backbone.heads=2", "pairs.batch=4", "pairs.val_seeds=2", "distil.val_seeds=2", "grpo.val_seeds=2",
            "reward.batch=32", "grpo.prompts=2", "grpo.num_generations=4", "grpo.signal_every=0",
            "lab.tensorboard=false"]  # fmt: skip
    loops = [f"{stage}.loop.{name}=1" for stage in ("pairs", "distil", "grpo") for name in ("updates", "validate_every")]
    full = demo.run_command
    monkeypatch.setattr(demo, "run_command", lambda stage, settings: full(stage, [*settings, *tiny, *loops]))
    made = demo.rebuild_policy(build_task("digits-mlp"), tmp_path / "train", distil, "cpu")
    folder = tmp_path / ("train-distil" if distil else "train")
    assert made == folder / "grpo" / "policy.safetensors"
    assert made.exists()
    assert (folder / "distil").exists() == distil


@pytest.mark.slow
def test_the_demo_of_controllers_leaves_files_a_table_and_an_animation(tmp_path, capsys):
    pytest.importorskip("gymnasium", reason="gymnasium is not installed (extra control)")
    from PIL import Image

    from synthnet.commands.carts import FRAMES, demo_control

    demo_control(8, str(tmp_path / "out"))
    printed = capsys.readouterr().out
    assert "random nets" in printed
    assert "synthesised" in printed
    with Image.open(tmp_path / "out" / "carts.gif") as animation:
        assert animation.n_frames == FRAMES
    assert len(list((tmp_path / "out" / "synthesised").glob("*.safetensors"))) == 8
    with pytest.raises(InputError, match="at least 8"):
        demo_control(2, str(tmp_path / "out"))
