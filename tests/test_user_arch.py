"""Modules of the user's own, named on the command line: traced, covered by a policy, refused in one line where bad."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from synthnet.nets.arch import Arch
from synthnet.nets.weights import read_metadata, read_weights
from synthnet.policy.policy import Policy, PolicyConfig
from synthnet.tasks import own_arch
from test_cli import run

MINE = """
from __future__ import annotations
from dataclasses import dataclass
import sys
import torch
import sibling
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 3)
    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.c(h + torch.relu(self.b(h)))

class Branches(Net):
    def forward(self, x):
        return self.c(self.a(x)) if x.sum() > 0 else self.c(self.b(self.a(x)))

def make(): return Net(), torch.zeros(2, 12)
def branches(): return Branches(), torch.zeros(2, 12)
def breaks(): raise RuntimeError("no\\nway")
def number(): return 3
def leaves(): sys.exit(7)

@dataclass
class Settings:
    width: int = 8
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's own, and a file of its weights."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    Path("sibling.py").write_text("")
    torch.manual_seed(0)
    save_file(own_arch("mine.py:make").skeleton().state_dict(), "net.safetensors")


def test_inspect_traces_a_module_of_the_users_own(mine, capsys):
    code, out, _ = run(capsys, "inspect", "net.safetensors", "--arch-py", "mine.py:make", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["groups"] == {"hidden1": 8}, "the residual addition makes one group of both layers"
    assert found["tokens"]["scheme"] == "unit"
    assert found["arch"]["builder"] == "traced", "data, never code"


def test_what_cannot_be_traced_falls_back_with_one_notice(mine, capsys):
    code, out, err = run(capsys, "inspect", "net.safetensors", "--arch-py", "mine.py:branches", "--json")
    assert code == 0
    assert json.loads(out)["tokens"]["scheme"] == "chunk"
    assert err.count("\n") == 1
    assert "chunk tokens only: cannot trace Branches" in err


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("mine.py:breaks", "RuntimeError: no way"),
        ("mine.py:leaves", "SystemExit: 7"),
        ("mine.py:number", "should return a torch.nn.Module"),
        ("mine.py:nothing", "has no attribute"),
        ("other.py:make", "does not exist"),
        ("mine.py", "expects FILE.py:FACTORY"),
    ],
)
def test_a_bad_factory_is_refused_in_one_line(mine, capsys, factory, message):
    code, _, err = run(capsys, "inspect", "net.safetensors", "--arch-py", factory)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.filterwarnings("default:.*never trained on")
def test_a_policy_for_a_module_of_the_users_own(mine, capsys):
    """It is covered by a policy of the same tokens; its file then describes it, and names no code."""
    arch = own_arch("mine.py:make")
    policy = Policy.create(PolicyConfig({"name": "chunk", "size": 16}), [Arch.of("mlp", sizes=[12, 8, 8, 3])], 0)
    policy.save("p.safetensors")
    flags = ["--policy", "p.safetensors", "--arch-py", "mine.py:make"]
    code, _, err = run(capsys, "synthesize", "net.safetensors", "-o", "made.safetensors", *flags)
    assert code == 0, err
    assert "never trained on" in err
    assert Arch.from_dict(json.loads(read_metadata("made.safetensors")["synthnet.arch"])) == arch
    assert "mine.py" not in str(read_metadata("made.safetensors"))
    assert not arch.spec().differences(read_weights("made.safetensors").spec)
    code, _, err = run(capsys, "synthesize", "net.safetensors", "-o", "no.safetensors", *flags, "--strict")
    assert code == 2
    assert "as --strict asks" in err
    assert not Path("no.safetensors").exists()
