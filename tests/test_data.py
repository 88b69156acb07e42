import gzip
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from synthnet.engine.population import Recipe
from synthnet.engine.scoring import score
from synthnet.engine.variation import STATISTICS
from synthnet.errors import InputError
from synthnet.tasks import build_task, check_same_data, data, task_names
from synthnet.tasks.data.cifar10 import FILES, RECORD
from synthnet.tasks.data.idx import NAMES
from synthnet.tasks.twins import grow_twins


def write_idx(path, array):
    raw = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_mnist(folder, n=40, suffix=""):
    """Four IDX files in the real format with n training and n/2 test images."""
    rng, folder = np.random.default_rng(0), folder
    arrays = {}
    for index, count in enumerate((n, n // 2)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        write_idx(folder / (NAMES["images"][index] + suffix), images)
        write_idx(folder / (NAMES["labels"][index] + suffix), labels)
        arrays[index] = (images, labels)
    return arrays


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_exactly(tmp_path, suffix):
    arrays = write_mnist(tmp_path, suffix=suffix)
    images, labels = data.load("idx", tmp_path)
    assert images.shape == (60, 28, 28)
    assert torch.equal((images[:40] * 255).round().to(torch.uint8), torch.from_numpy(arrays[0][0]))
    assert torch.equal(labels[40:], torch.from_numpy(arrays[1][1].astype(np.int64)))


def test_the_mnist_task_trains_on_local_files(tmp_path):
    write_mnist(tmp_path, n=200)
    task = build_task("mnist5k-mlp", data_dir=str(tmp_path))
    inputs, labels = task.examples("train")
    assert inputs.shape == (210, 784)
    assert task.network.logits(task.draw_start("val", [0]), inputs).shape == (1, 210, 10)
    assert labels.max() == 9


def test_cifar_binary_is_read_exactly(tmp_path):
    rng = np.random.default_rng(0)
    records = rng.integers(0, 256, (6, 4, RECORD), dtype=np.uint8)
    records[:, :, 0] %= 10
    for name, part in zip(FILES, records, strict=True):
        (tmp_path / name).write_bytes(part.tobytes())
    images, labels = data.load("cifar10", tmp_path)
    assert images.shape == (24, 3, 32, 32)
    assert torch.equal(labels, torch.from_numpy(records[:, :, 0].reshape(-1).astype(np.int64)))
    assert images[5, 1, 0, 0].item() == pytest.approx(records[1, 1, 1 + 1024] / 255)


@pytest.mark.parametrize(
    ("source", "spoil", "message"),
    [
        ("idx", lambda folder: None, "put the four IDX files"),
        ("idx", lambda folder: write_mnist(folder) and (folder / NAMES["images"][0]).write_bytes(b"junk"), "not an IDX"),
        ("idx", lambda folder: write_mnist(folder) and _cut(folder / NAMES["images"][1]), "truncated"),
        ("cifar10", lambda folder: None, "cifar-10-binary.tar.gz"),
        ("cifar10", lambda folder: (folder / FILES[0]).write_bytes(b"x" * 100), "truncated"),
    ],
)
def test_missing_or_damaged_files_get_one_message(tmp_path, source, spoil, message):
    spoil(tmp_path)
    with pytest.raises(InputError, match=message):
        data.load(source, tmp_path)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def test_missing_data_says_which_file_goes_where():
    with pytest.raises(InputError, match=r"put train-images-idx3-ubyte.* pass data_dir"):
        data.load("idx", None)
    with pytest.raises(InputError, match="not a folder"):
        data.load("cifar10", "/nowhere/at/all")


LOCAL = {"fashion-cnn": {"channels": [2, 3]}, "cifar10-resnet18": {"width": 8}}  # tasks that read files of the user's


OTHERS = {name for name in task_names() if build_task(name).data is None or build_task(name).joint}  # no data, or several


@pytest.mark.parametrize("name", sorted(set(task_names()) - {*LOCAL, *OTHERS}))
def test_splits_are_disjoint_complete_and_fixed(name):
    task = build_task(name)
    source = task.data.source
    indices = data.split_indices(source, len(data.load(source)[1]), 0)
    together = torch.cat(list(indices.values()))
    assert len(together.unique()) == len(together)
    assert {split: len(part) for split, part in indices.items()} == {
        "digits": {"train": 1100, "reward": 100, "val": 100, "test": 497},
        "mnist5k": {"train": 3500, "reward": 250, "val": 250, "test": 1000},
    }[source]
    order = torch.randperm(len(together), generator=torch.Generator().manual_seed(0))
    assert torch.equal(indices["train"], order[: len(indices["train"])])
    inputs, _ = task.examples("train")
    assert abs(inputs.mean().item()) < 1e-4
    assert inputs.std().item() == pytest.approx(1, abs=1e-4)


def test_start_weights_of_different_purposes_and_seeds_differ(tiny):
    draws = torch.cat([tiny.draw_start(purpose, [0, 1]) for purpose in ("zoo", "heldout", "val", "test", "user")])
    assert len({tuple(row.tolist()) for row in draws}) == 10
    assert torch.equal(tiny.draw_start("zoo", [5])[0], tiny.draw_start("zoo", [3, 5])[1])


def test_the_test_split_is_refused_outside_evaluation(tiny):
    with pytest.raises(InputError, match="evaluation and reports only"):
        tiny.examples("test")
    with pytest.raises(InputError, match="evaluation and reports only"):
        tiny.examples("train+test")


@pytest.mark.parametrize("name", sorted(LOCAL))
def test_tasks_on_local_files_run_end_to_end(name, tmp_path, capsys):
    """From files in the real format to start weights, conventional training, and a score on the test split."""
    with pytest.raises(InputError, match="data_dir"):
        build_task(name).examples("train")
    rng = np.random.default_rng(0)
    if name == "fashion-cnn":
        write_mnist(tmp_path)
    else:
        for file in FILES:
            records = rng.integers(0, 256, (12, RECORD), dtype=np.uint8)
            records[:, 0] %= 10
            (tmp_path / file).write_bytes(records.tobytes())
    task = build_task(name, data_dir=str(tmp_path), **LOCAL[name])
    assert torch.cat([task.examples(split)[1] for split in ("train", "reward", "val")]).max() < 10
    quick = replace(task, recipe=Recipe(1e-3, 16, 1))
    start = quick.draw_start("user", [0, 1])
    grown = grow_twins(quick, start)
    assert torch.isfinite(grown).all()
    assert not torch.equal(grown, start)
    accuracy, loss = score(task.network, grown, *task.test_data())
    assert ((accuracy >= 0) & (accuracy <= 1)).all()
    assert torch.isfinite(loss).all()


def test_mnist8_is_mnist_averaged_down_and_a_joint_task_has_each_members_own_data():
    joint = build_task("digits-mnist8", split_seed=1, held_back=10)
    digits, mnist = joint.members
    assert [member.name for member in joint.members] == ["digits-mlp", "mnist8-mlp"]
    assert digits.arch == mnist.arch
    assert digits.data_set != mnist.data_set
    assert joint.data_key == {"joint": [digits.data_key, mnist.data_key]}
    assert mnist.data_key == build_task("mnist5k-mlp", split_seed=1, held_back=10).data_key
    images, labels = mnist.examples("train")
    whole, same = build_task("mnist5k-mlp", split_seed=1, held_back=10).examples("train")
    assert torch.equal(labels, same)
    small = torch.nn.functional.adaptive_avg_pool2d(whole.view(-1, 28, 28)[:5], 8).flatten(1)
    assert torch.corrcoef(torch.stack([small.flatten(), images[:5].flatten()]))[0, 1] > 0.9999
    with pytest.raises(ValueError, match="several data sets"):
        joint.examples("train")
    assert [member.data.data_dir for member in build_task("digits-mnist8", data_dir="there").members] == [None, "there"]
    for recorded in (digits.data_key, joint.data_key):
        check_same_data(recorded, digits, "it")
    with pytest.raises(InputError, match="made on other images"):
        check_same_data(joint.data_key, build_task("digits-mlp"), "it")


def test_statistics_are_pictures_of_the_training_images_alone():
    """Mean, deviation, and what each class adds to the mean; 8x8 numbers each."""
    task = build_task("digits-mlp")
    inputs, labels = task.examples("train")
    pictures = task.statistics.view(12, 64)
    assert torch.allclose(pictures[0], inputs.mean(0), atol=1e-5)
    assert torch.allclose(pictures[1], inputs.std(0), atol=1e-5)
    assert torch.allclose(pictures[5], inputs[labels == 3].mean(0) - inputs.mean(0), atol=1e-5)
    small = build_task("mnist5k-cnn")
    whole = small.examples("train")[0].mean(0).view(1, 14, 14)
    picture = torch.nn.functional.adaptive_avg_pool2d(whole, 8).flatten()
    assert torch.allclose(small.statistics.view(12, 64)[0], picture, atol=1e-5), "pooled along both sides"
    assert build_task("mnist5k-cnn").statistics.shape == (STATISTICS,) == build_task("mnist-simplecnn").statistics.shape
