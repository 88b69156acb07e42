"""One file adds a reward, a trunk, a task, a data set, a way through the synth steps; a stage takes two, a setting one.

The package is copied without its policies, files are dropped into it, and commands run on the copy: nothing else is touched.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import synthnet

ROOT = Path(synthnet.__file__).parent
ADDED = {
    "grpo/rewards/small_weights.py": '''"""Minus the size of the last net's weights."""

from torch import Tensor

from synthnet.grpo.score import Scored

FLOOR, BEST = -10.0, 0.0


def reward(scored: Scored) -> Tensor:
    return -scored.norm[:, -1]
''',
    "policy/trunks/bias_only.py": '''"""One learned number for all weights."""

from dataclasses import dataclass

import torch
from torch import nn

from synthnet.policy.tokens import TokenLayout, Tokens
from synthnet.settings import setting


@dataclass
class Config:
    name: str = "bias_only"
    first: float = setting(0.1, "what it begins with", (-1, 1))


class BiasOnly(nn.Module):
    def __init__(self, first: float):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(first))

    def forward(self, tokens: Tokens, layout: TokenLayout, steps_left) -> Tokens:
        return Tokens(0 * tokens.units + self.bias, tuple(0 * edge + self.bias for edge in tokens.edges))


def build(config: Config, layout: TokenLayout, k_max: int) -> nn.Module:
    return BiasOnly(config.first)
''',
    "tasks/data/stripes.py": '''"""Two kinds of stripes, made on the spot."""

import torch

SIZES = (60, 10, 10)


def load(data_dir=None):
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(100) % 10
    return torch.rand((100, 16), generator=draw) + torch.eye(10, 16)[labels], labels
''',
    "tasks/problems/stripes_mlp.py": '''"""Stripes and a small MLP."""

from dataclasses import dataclass

from synthnet.engine import Recipe
from synthnet.nets import Arch
from synthnet.tasks.settings import DataConfig
from synthnet.tasks.source import Source
from synthnet.tasks.task import Task


@dataclass
class Config(DataConfig):
    name: str = "stripes-mlp"


def build(config: Config) -> Task:
    arch = Arch.of("mlp", sizes=[16, 6, 10])
    return Task(name=config.name, arch=arch, data=Source("stripes"), recipe=Recipe(1e-2, 32, 5))
''',
    "policy/steps/twice.py": '''"""Two steps for every net."""

import torch

from synthnet.policy.rollout import rollout


def synthesize(policy, start, net):
    return rollout(policy, start, 2, net)[-1], torch.full((len(start),), 2)
''',
    "train/shrink.py": '''"""A stage that makes what the policy synthesises small."""

from dataclasses import dataclass, field

from synthnet.policy import rollout
from synthnet.settings import setting
from synthnet.train.loop import LoopConfig, OptimConfig, Run


@dataclass
class ShrinkConfig:
    weight: float = setting(1.0, "of the size", (0, 10), hot=True)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(updates=2, validate_every=1, checkpoint_every=1))
    optim: OptimConfig = field(default_factory=OptimConfig)


def train_shrink(policy, task, config, setup):
    start, net = task.draw_start("val", [0, 1]), task.network
    size = lambda learner: rollout(learner, start, 1, net)[-1].square().mean()
    with Run(setup, policy, config, lambda average, _: {"score": -size(average).item()}, {"shrink": config}) as run:
        for _ in run.updates():
            run.step(config.weight * size(policy), {})
        return run.finish({})
''',
}  # fmt: skip


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> Path:
    """A copy of the package with these files; a stage's second file, and a setting's only one, are edited."""
    root = tmp_path_factory.mktemp("grown")
    package = root / "synthnet"
    shutil.copytree(ROOT, package, ignore=shutil.ignore_patterns("policies", "__pycache__"))
    (package / "policies").mkdir()
    for name, text in ADDED.items():
        (package / name).write_text(text)
    stages, config = package / "stages.py", package / "grpo" / "config.py"
    entry = """from synthnet.train.shrink import ShrinkConfig, train_shrink


def shrink(config, task, setup):
    return train_shrink(start_policy(config, task, setup), task, config.shrink, setup)


STAGES["shrink"] = Stage(ShrinkConfig, shrink)
"""
    stages.write_text(f"{stages.read_text()}\n\n{entry}")
    text, last = config.read_text(), "    guard: GuardConfig"
    config.write_text(
        text.replace(last, f'    patience_of_saints: float = setting(0.5, "a trial", (0, 1), hot=True)\n{last}', 1)
    )
    return root


def command(grown: Path, *arguments: str, code: int = 0) -> str:
    env = {**os.environ, "PYTHONPATH": str(grown), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "synthnet.cli", *arguments]
    done = subprocess.run(line, cwd=grown, env=env, capture_output=True, text=True)
    assert done.returncode == code, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_what_one_file_adds_works(grown):
    small = ["task=stripes-mlp", "threads=1", "lab.tensorboard=false"]
    command(grown, "zoo", *small, "zoo.runs=4", "zoo.heldout=2", "run_dir=zoo")
    pairs = [*small, "zoo_dir=zoo", "pairs.loop.updates=2", "pairs.val_seeds=2", "pairs.batch=4"]
    command(grown, "pairs", *pairs, "backbone=bias_only", "backbone.first=0.2", "run_dir=odd")
    command(grown, "pairs", *pairs, "backbone.dim=16", "run_dir=pairs")
    grpo = ["grpo.loop.updates=1", "grpo.val_seeds=2", "grpo.prompts=2", "grpo.num_generations=4", "reward.batch=20"]
    command(grown, "grpo", *small, *grpo, "policy_from=pairs", "reward.small_weights=1", "run_dir=grpo")
    logged = [json.loads(line) for line in (grown / "grpo" / "metrics.jsonl").read_text().splitlines()]
    assert any(-10 < row.get("rewards/small_weights", -99) < 0 for row in logged)
    command(grown, "critic", *small, "policy_from=pairs", "critic.loop.updates=1", "critic.val_seeds=2", "critic.nets=2",
            "run_dir=critic")  # fmt: skip
    command(grown, "init", "--task", "stripes-mlp", "-o", "start.safetensors")
    shared = ["synthesize", "start.safetensors", "--policy", "critic/policy.safetensors", "-o", "out.safetensors"]
    assert "2 step(s) each" in command(grown, *shared, "--steps", "twice")
    assert "auto or one or twice" in command(grown, *shared, "--steps", "thrice", code=2)
    assert "stripes-mlp" in command(grown, "evaluate", "out.safetensors", "--task", "stripes-mlp", "--json")


@pytest.mark.slow
def test_a_stage_takes_two_files_and_is_like_any_other(grown):
    small = ["task=digits-mlp", "task.hidden=[6]", "threads=1", "lab.tensorboard=false"]
    command(grown, "zoo", *small, "zoo.runs=2", "zoo.heldout=2", "run_dir=z")
    command(grown, "pairs", *small, "zoo_dir=z", "pairs.loop.updates=1", "pairs.val_seeds=2", "backbone.dim=16", "run_dir=p")
    command(grown, "run", *small, "stages=[shrink]", "policy_from=p", "shrink.weight=0.5", "run_dir=r")
    assert (grown / "r" / "shrink" / "policy.safetensors").exists()
    assert "shrink.weight must lie in 0 to 10" in command(
        grown, "run", *small, "stages=[shrink]", "policy_from=p", "shrink.weight=11", "run_dir=q", code=2
    )
    knobs = command(grown, "config", "--knobs")
    assert "| shrink.weight | of the size | float | 1.0 | hot: shrink | 0 to 10 |" in knobs
    assert "| grpo.patience_of_saints | a trial | float | 0.5 | hot: grpo | 0 to 1 |" in knobs
