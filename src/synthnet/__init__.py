"""SynthNet: random network weights in, trained network weights out, in 1–6 learned synth steps and without data."""

from synthnet.errors import InputError
from synthnet.nets.weights import WeightSpec, WeightState, read_weights, write_weights
from synthnet.policy.file import load_policy
from synthnet.policy.policy import Policy
from synthnet.synthesis import synthesize

__all__ = [
    "InputError",
    "Policy",
    "WeightSpec",
    "WeightState",
    "evaluate",
    "load_policy",
    "read_weights",
    "synthesize",
    "write_weights",
]


def evaluate(files, split: str = "test", task: str | None = None) -> list[dict]:
    """Accuracy and loss of weight files on a task's data: [{file, task, split, n, accuracy, loss}]."""
    from synthnet.audit.evaluation import evaluate_files

    return evaluate_files(files, split, task)
