"""What a task refuses: parts that are missing or of the wrong kind, modules that are none, data that do not fit its net."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin

from synthnet.engine import Recipe
from synthnet.errors import InputError
from synthnet.nets import asked
from synthnet.tasks.dataset import Data
from synthnet.tasks.source import Source


def check_own(task) -> None:
    """Refuse a problem of the user's own that lacks a part, or has one of the wrong kind."""
    if not callable(task.module) or isinstance(task.module, nn.Module):
        raise InputError(
            "Task takes module=a function without arguments that returns a new nn.Module, as in lambda: nn.Linear(4, 2)"
        )
    if (task.data is None) == (task.reward is None):
        raise InputError("Task takes data=synthnet.Data(…), or reward=a function of (nets, draw) and no data")
    if task.data is not None and not isinstance(task.data, Data | Source):
        raise InputError(f"data should be synthnet.Data(x, y), got {type(task.data).__name__}")
    if task.reward is not None and not (isinstance(task.example, Tensor) and task.example.shape[:1] == (1,)):
        raise InputError("a task of rewards alone takes example=a batch of one of its inputs, as in torch.zeros(1, 4)")
    if not isinstance(task.recipe, Recipe):
        raise InputError(f"Task.recipe should be a synthnet.Recipe, got {type(task.recipe).__name__}")
    if task.variant is not None and (task.spec is None or task.data is None):
        raise InputError("Task.variant says what the data of each spec are: it takes data, and spec={name: (low, high)}")
    if task.spec is not None and task.data is not None and task.variant is None:
        raise InputError("a task with data and a spec takes variant=a function of (inputs, targets, spec) -> what they become")
    for name in ("loss", "metric", "reward", "start", "variant"):
        if getattr(task, name) is not None and not callable(getattr(task, name)):
            raise InputError(f"Task.{name} should be a function, got {type(getattr(task, name)).__name__}")


def made(factory: Callable[[], nn.Module], what: str = "module") -> nn.Module:
    module = asked(f"the task's {what} fails", factory)
    if not isinstance(module, nn.Module):
        raise InputError(f"the task's {what} should return a torch.nn.Module, got {type(module).__name__}")
    if any(isinstance(value, UninitializedTensorMixin) for value in module.state_dict().values()):
        raise InputError(f"the task's {what} has lazy layers, whose sizes are not known yet: say them")
    names: dict[int, str] = {}
    for name, value in module.named_parameters(remove_duplicate=False):
        if (other := names.setdefault(id(value), name)) != name:
            raise InputError(f"the task's {what} shares one weight as {other} and {name}: give each layer its own")
    return module


def check_fit(task: str, module: nn.Module, source: str, inputs: Tensor, labels: Tensor) -> None:
    """Refuse data that are not for a task's network, where that says its sizes. Raises: InputError."""
    n_inputs, n_classes = (getattr(module, name, None) for name in ("n_inputs", "n_classes"))
    if n_inputs not in (None, inputs.shape[1]):
        raise InputError(f"task {task}: its network takes {n_inputs} inputs, an example of {source} has {inputs.shape[1]}")
    if n_classes is not None and not 0 <= int(labels.min()) <= int(labels.max()) < n_classes:
        raise InputError(
            f"task {task}: its network tells {n_classes} classes apart (labels 0 to {n_classes - 1}), "
            f"{source} has labels {int(labels.min())} to {int(labels.max())}"
        )


def check_varied(task, inputs: Tensor, n_nets: int, found: object) -> tuple[Tensor, Tensor]:
    """Inputs and targets as a task's `variant` gave them. Raises: InputError for other shapes, or what are no class ids."""
    what = f"the variant of task {task.name} should"
    if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(each, Tensor) for each in found)):
        raise InputError(f"{what} return inputs and targets")
    made, wanted = found
    shared, own = inputs.shape, (n_nets, *inputs.shape)
    if made.shape not in (shared, own) or wanted.shape[:2] != own[:2]:
        raise InputError(
            f"{what} give inputs {list(shared)} or {list(own)}, and targets [{n_nets} {len(inputs)} …], got {list(made.shape)} "
            f"and {list(wanted.shape)}"
        )
    last = task.arch.n_outputs - 1
    if task.objective.kind == "classes" and (wanted.is_floating_point() or not 0 <= wanted.min() <= wanted.max() <= last):
        came = f"{str(wanted.dtype).removeprefix('torch.')} from {wanted.min().item():g} to {wanted.max().item():g}"
        raise InputError(f"{what} give class ids from 0 to {last}, as whole numbers (.long()), got {came}")
    return made, wanted
