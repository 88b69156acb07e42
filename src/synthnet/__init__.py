"""SynthNet: random network weights in, trained network weights out, in 1–6 learned synth steps and without data."""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.2.0"
_FACE = {  # name -> where it is; imported on first use, so that asking for help does not load torch
    "Data": "tasks.dataset",
    "InputError": "errors",
    "Policy": "policy.policy",
    "Recipe": "engine",
    "Task": "tasks.task",
    "WeightSpec": "nets.weights",
    "WeightState": "nets.weights",
    "evaluate": "audit.evaluation",
    "learn": "commands.learn",
    "load_policy": "bundled",
    "policies": "bundled",
    "read_weights": "nets.weights",
    "synthesize": "synthesis",
    "write_weights": "nets.weights",
}
__all__ = ["__version__", *_FACE]

if TYPE_CHECKING:
    from synthnet.audit.evaluation import evaluate as evaluate
    from synthnet.bundled import load_policy as load_policy
    from synthnet.bundled import policies as policies
    from synthnet.commands.learn import learn as learn
    from synthnet.engine import Recipe as Recipe
    from synthnet.errors import InputError as InputError
    from synthnet.nets.weights import WeightSpec as WeightSpec
    from synthnet.nets.weights import WeightState as WeightState
    from synthnet.nets.weights import read_weights as read_weights
    from synthnet.nets.weights import write_weights as write_weights
    from synthnet.policy.policy import Policy as Policy
    from synthnet.synthesis import synthesize as synthesize
    from synthnet.tasks.dataset import Data as Data
    from synthnet.tasks.task import Task as Task


def __getattr__(name: str) -> object:
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FACE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
