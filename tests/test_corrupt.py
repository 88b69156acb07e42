"""The corruptor: back from clean states towards their starts, and whom the pairs stage takes for one."""

import pytest
import torch

from conftest import make_policy
from synthnet.errors import InputError
from synthnet.lab.fork import run_command
from synthnet.policy.file import read_policy
from synthnet.train.corrupt import corrupted_states
from synthnet.train.zoo import Zoo
from test_stages import SMALL, _metrics


def test_a_corruptor_goes_back_and_its_chains_end_at_the_clean_states(zoo_dir, tmp_path, tiny):
    base = [*SMALL, f"zoo_dir={zoo_dir}"]
    loop = ["corrupt.loop.updates=40", "corrupt.loop.validate_every=40", "corrupt.batch=16", "corrupt.optim.learning_rate=3e-3"]
    path = run_command("corrupt", [*base, *loop, f"run_dir={tmp_path / 'c'}"])
    found = {key: value for row in _metrics(tmp_path / "c") for key, value in row.items() if key.startswith("val/")}
    assert found["val/start_error"] < 0.9, "it must end nearer to the true starts of unseen runs than where it began"
    corruptor, clean = read_policy(path), Zoo.open(zoo_dir).states("zoo")[:, -1]
    chains = corrupted_states(corruptor, clean, 4, tiny.network, seed=0)
    assert torch.equal(chains[:, -1], clean)
    assert not torch.equal(chains, corrupted_states(corruptor, clean, 4, tiny.network, seed=1))
    steps = ["pairs.loop.updates=2", "pairs.loop.validate_every=2", "pairs.val_seeds=4"]
    for source in ("corruptor", "both"):
        run_command(
            "pairs",
            [*base, *steps, f"pairs.source={source}", f"pairs.corruptor={tmp_path / 'c'}", f"run_dir={tmp_path / source}"],
        )


def test_a_corruptor_must_be_one_and_must_be_named(zoo_dir, tmp_path, tiny):
    make_policy(tiny).save(tmp_path / "p.safetensors")
    base = [*SMALL, f"zoo_dir={zoo_dir}", f"run_dir={tmp_path / 'r'}"]
    for settings, message in (
        (["pairs.source=both"], "need pairs.corruptor"),
        (["pairs.source=none"], "zoo, corruptor, both"),
        (["pairs.single=-1"], r"pairs\.single must lie in"),
        ([f"pairs.{chain}=0" for chain in ("single", "short", "long", "skipped")], "not all be zero"),
        (["pairs.source=both", f"pairs.corruptor={tmp_path / 'p.safetensors'}"], "not a corruptor"),
    ):
        with pytest.raises(InputError, match=message):
            run_command("pairs", [*base, *settings])
