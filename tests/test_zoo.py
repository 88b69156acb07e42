"""The zoo: real training runs, resumed shard by shard, trained together as each would be alone, or imported."""

import pytest
import torch

from conftest import setup_at
from synthnet.errors import InputError
from synthnet.tasks import build_task
from synthnet.train.zoo import Zoo, ZooConfig, build_zoo, import_zoo


def test_zoo_holds_its_runs_and_the_recipe_works(zoo_dir):
    zoo = Zoo.open(zoo_dir)
    states, task = zoo.states("zoo"), build_task("digits-mlp", hidden=[8])
    assert states.shape == (12, 6, task.network.spec.n_weights)
    assert zoo.states("heldout").shape[0] == 4
    assert torch.equal(states[:, 0], task.draw_start("zoo", list(range(12))))
    assert all(row["val_accuracy"] > 0.8 for row in zoo.index)
    with pytest.raises(InputError, match="asked for 13"):
        zoo.states("zoo", 13)


def test_a_killed_zoo_resumes_at_the_missing_shard(zoo_dir, tmp_path):
    task, config = build_task("digits-mlp", hidden=[8]), ZooConfig(runs=12, heldout=4, shard=6)
    build_zoo(task, config, setup_at(tmp_path / "z", "zoo"))
    shards = sorted((tmp_path / "z").glob("states-*"))
    before = shards[2].read_bytes()
    kept = shards[0].stat().st_mtime_ns
    shards[2].unlink()
    (tmp_path / "z" / "zoo.json").unlink()
    with pytest.raises(InputError, match="not a finished zoo"):
        Zoo.open(tmp_path / "z")
    build_zoo(task, config, setup_at(tmp_path / "z", "zoo"))
    assert shards[2].read_bytes() == before
    assert shards[0].stat().st_mtime_ns == kept
    assert torch.equal(Zoo.open(tmp_path / "z").states(), Zoo.open(zoo_dir).states())


def test_a_population_trains_like_single_nets(tiny):
    """The batched computation against torch's own modules and Adam, one net at a time, on the same minibatches."""
    from synthnet.engine import Recipe
    from synthnet.engine.population import Training, train_population
    from synthnet.seeds import generator

    recipe, (inputs, labels) = Recipe(3e-3, 64, 2), tiny.examples("train")
    start = tiny.draw_start("zoo", [0, 1])
    together = train_population(tiny.network, start, inputs, labels, Training(recipe), [0, 1, 2])
    assert torch.equal(together[:, 0], start)
    for index in range(2):
        module = tiny.arch.build()
        module.load_state_dict(tiny.network.spec.unflatten(start[index]))
        optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
        for epoch in (1, 2):
            for chosen in torch.randperm(len(inputs), generator=generator(0, "batch-order", epoch)).split(64):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(module(inputs[chosen]), labels[chosen]).backward()
                optimizer.step()
        alone = tiny.network.spec.flatten(module.state_dict())
        assert (alone - together[index, 2]).norm() < 1e-3 * alone.norm()
    own = train_population(tiny.network, start, inputs, labels, Training(recipe, per_run_order=True), [2], run_ids=[0, 1])
    assert not torch.allclose(own[:, 0], together[:, 2], atol=1e-2)


def test_noise_and_warps_of_a_run_are_its_own_whichever_nets_train_beside_it():
    """Breaks where nets that train together take turns at one stream of noise: then their number and place decide."""
    from synthnet.engine import Recipe, Training, train_population

    task = build_task("digits-mlp", hidden=[4])
    inputs, labels = (part[:96] for part in task.examples("train"))
    start = task.draw_start("user", [0, 1, 2])
    training = Training(Recipe(3e-3, 32, 2, input_noise=0.5, warp=0.1), per_run_order=True)
    train = lambda nets: train_population(task.network, start[nets], inputs, labels, training, [2], run_ids=nets)[:, 0]  # noqa: E731
    together, alone = train([0, 1, 2]), train([2])
    assert torch.allclose(together[2], alone[0], atol=1e-5)
    assert torch.allclose(train([2, 0])[1], together[0], atol=1e-5)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_own_runs_are_imported_in_numeric_order(tmp_path, suffix, tiny):
    from safetensors.torch import save_file

    states = tiny.draw_start("user", list(range(9))).view(3, 3, -1)
    for run in range(3):
        folder = tmp_path / "runs" / f"run{run}"
        folder.mkdir(parents=True)
        for place, epoch in enumerate((0, 2, 10)):
            tensors = {n: v.clone() for n, v in tiny.network.spec.unflatten(states[run, place]).items()}
            path = folder / f"weights_epoch_{epoch}.{suffix}"
            save_file(tensors, path) if suffix == "safetensors" else torch.save(tensors, path)
    zoo = import_zoo(tmp_path / "runs", tmp_path / "zoo")
    assert torch.equal(zoo.states("zoo"), states[:2])
    assert torch.equal(zoo.states("heldout"), states[2:])
    assert zoo.arch == tiny.arch


def test_import_refuses_pickles_that_are_not_state_dicts(tmp_path):
    (tmp_path / "a_0.pth").write_bytes(b"nonsense")
    (tmp_path / "a_1.pth").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="weights_only"):
        import_zoo(tmp_path, tmp_path / "zoo")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no runs"):
        import_zoo(tmp_path / "none", tmp_path / "zoo")


def test_import_neither_overwrites_nor_guesses(tmp_path, tiny, zoo_dir):
    for name in ("weights_final", "weights_epoch_0"):
        torch.save(tiny.network.spec.unflatten(tiny.draw_start("user", [0])[0]), tmp_path / f"{name}.pth")
    with pytest.raises(InputError, match="one numbering"):
        import_zoo(tmp_path, tmp_path / "zoo")
    (tmp_path / "weights_final.pth").rename(tmp_path / "weights_epoch_1.pth")
    before = (zoo_dir / "index.jsonl").read_text()
    with pytest.raises(InputError, match="not an empty folder"):
        import_zoo(tmp_path, zoo_dir)
    assert (zoo_dir / "index.jsonl").read_text() == before
