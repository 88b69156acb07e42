"""Data of the user's own: splits, standards, tables, arrays and images."""

from pathlib import Path

import numpy as np
import torch

import synthnet
from problem import blobs
from synthnet.tasks.readers import problem_text, read_data
from test_cli import run


def test_splits_are_stratified_disjoint_and_fitted_on_train():
    x, y = blobs(400)
    labels = np.where(y == 1, "yes", "no")
    data = synthnet.Data(3 * x + 5, labels)
    inputs, targets, indices = data.splits()
    assert {name: len(part) for name, part in indices.items()} == {"train": 260, "reward": 20, "val": 40, "test": 80}
    assert len(torch.cat(list(indices.values())).unique()) == 400
    train = inputs[indices["train"]]
    assert train.mean(0).abs().max() < 1e-5
    assert (train.std(0) - 1).abs().max() < 1e-5
    assert data.classes == ["no", "yes"]
    assert torch.equal(targets, torch.from_numpy((labels == "yes").astype(int)))
    for part in indices.values():
        assert abs(targets[part].float().mean() - y.mean()) < 0.05, "as many of each class"
    assert not torch.equal(indices["test"], data.splits(1).indices["test"])


def test_parts_that_are_apart_stay_apart_and_whole_numbers_stay_whole():
    x, y = blobs(200)
    data = synthnet.Data(train=(x[:150], y[:150]), test=(x[150:], y[150:]))
    indices = data.splits().indices
    assert sorted(indices["test"].tolist()) == list(range(150, 200))
    assert {name: len(part) for name, part in indices.items()} == {"train": 122, "reward": 9, "val": 19, "test": 50}
    words = synthnet.Data(np.arange(300).reshape(100, 3) % 7, y[:100], standardise=False)
    assert words.splits().inputs.dtype == torch.int64
    assert synthnet.Data(x, y).key == synthnet.Data(x.copy(), y.copy()).key != synthnet.Data(x + 1, y).key


def test_tables_arrays_and_images_are_read_and_bad_ones_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = blobs(60)
    rows = ["a,b,c,d,e,kind", *(",".join([*map(str, row), "yes" if label else "no"]) for row, label in zip(x, y, strict=True))]
    Path("t.csv").write_text("\n".join(rows) + "\n")
    assert read_data("t.csv").classes == ["no", "yes"]
    assert read_data("t.csv", "kind").key == read_data("t.csv").key
    np.savez("a.npz", x=x, y=y)
    assert read_data("a.npz").n_targets == 2
    from PIL import Image

    for name, shade in (("dark", 20), ("light", 220)):
        Path("pictures", name).mkdir(parents=True)
        for number in range(30):
            Image.new("L", (8, 8), shade + number % 10).save(f"pictures/{name}/{number}.png")
    assert read_data("pictures").shape == (1, 8, 8)
    assert read_data("pictures").classes == ["dark", "light"]
    assert "nn.Conv2d(1, 8, 3" in problem_text(Path("pictures"), "pictures", None, None)
    Path("w.csv").write_text("a,b\n1,2\nred,3\n")
    np.savez("b.npz", z=x)
    np.savez("o.npz", x=np.array([{}], dtype=object), y=y[:1])
    Path("deep", "c").mkdir(parents=True)
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save("deep/c/1.png")
    Path("bad", "c").mkdir(parents=True)
    Path("bad/c/1.png").write_text("no image")
    wrong = [
        (["t.csv", "--target", "price"], "has no column 'price'"),
        (["w.csv"], "holds 'red' where a number belongs"),
        (["b.npz"], "should hold x and y"),
        (["o.npz"], "no .npz of plain arrays"),
        (["bad"], "no image that can be read"),
        (["deep"], "save it with 8 bits a pixel"),
        (["nothing.csv"], "does not exist"),
        (["a.npz", "--target", "x"], "names a column of a .csv"),
    ]
    for arguments, message in wrong:
        code, _, err = run(capsys, "learn", *arguments)
        assert (code, message in err, err.count("\n")) == (2, True, 1), err
