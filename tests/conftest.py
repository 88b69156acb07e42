"""Shared small things: one thread, a tiny task, a tiny policy that does something."""

import importlib.util
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from problem import PROBLEM
from synthnet.lab.fork import run_command
from synthnet.policy.policy import ActionConfig, Policy, PolicyConfig
from synthnet.runs.setup import Setup
from synthnet.tasks import build_task
from synthnet.train import loop as training

torch.set_num_threads(1)


def load_benchmark(name: str):
    """A script of benchmarks/ as a module."""
    path = Path(__file__).parent.parent / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _own_draws():
    """Modules draw their weights from torch's global generator: no test depends on which ran before it in its process."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the plans of whoever runs it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


COLLAPSE = pytest.mark.filterwarnings("ignore:outputs of different seeds")  # untrained policies may do so
SMALL = ["task.hidden=[8]", "backbone.dim=16", "backbone.depth=2", "backbone.heads=2", "pairs.batch=8", "pairs.val_seeds=4"]
TINY_TRUNK = {"name": "set_transformer", "dim": 16, "depth": 2, "heads": 2, "edge_dim": 8}


def make_policy(task, backbone=None, tokens=None, k_max=4, sigma=0.05, head="delta", learn_sigma=False) -> Policy:
    """A small policy with its zero-initialised heads replaced, so that its output depends on everything it reads."""
    config = PolicyConfig(tokens or {"name": "unit"}, backbone or TINY_TRUNK, ActionConfig(head, sigma, learn_sigma), k_max)
    policy = Policy.create(config, [task.arch], seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in policy.trunk.parameters():
            if not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


def interrupt_at(call, work, monkeypatch):
    """Run `work` and press Ctrl-C during its n-th update."""
    apply, calls = training.Run._begin, []

    def pressed(*arguments):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return apply(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(training.Run, "_begin", pressed)
        with pytest.raises(KeyboardInterrupt):
            work()
    assert len(calls) == call


def wait_for(what, process=None) -> None:
    """Until it is so; fails at once if the process that should make it so has ended. How long it takes is the machine's
    affair: the suite's timeout ends what hangs."""
    while not what():
        if process is not None and process.poll() is not None and not what():
            raise AssertionError(f"the process ended with {process.returncode} before it was so")
        time.sleep(0.05)


def setup_at(folder, stage="grpo", seed=0, **changes) -> Setup:
    """What a run in this folder is started with."""
    return Setup(stage, "digits-mlp", Path(folder), seed=seed, **changes)


@pytest.fixture(scope="session")
def tiny():
    """digits with eight hidden units: 610 weights."""
    return build_task("digits-mlp", hidden=[8])


@pytest.fixture(scope="session")
def deep():
    """digits with two hidden layers, so that there are edge blocks."""
    return build_task("digits-mlp", hidden=[7, 5])


@pytest.fixture
def policy(tiny):
    return make_policy(tiny)


@pytest.fixture(scope="session")
def zoo_dir(tmp_path_factory):
    """A zoo of 12 runs and four held out, of digits with eight hidden units; tests leave it as it is."""
    path = tmp_path_factory.mktemp("zoo") / "zoo"
    run_command("zoo", ["task.hidden=[8]", "zoo.runs=12", "zoo.heldout=4", "zoo.shard=6", f"run_dir={path}"])
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def problem(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(PROBLEM)
