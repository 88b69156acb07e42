"""Which examples a policy or a zoo was made on, and whether a task has the same."""

from synthnet.errors import InputError
from synthnet.tasks.task import Task


def data_settings(recorded: dict | None) -> dict:
    """The settings of a task that give the data of a recorded data key (None: unknown, the defaults)."""
    first = next(iter(parts_of(recorded)), {})
    return {key: value for key in ("split_seed", "held_back") if type(value := first.get(key)) is int}


def parts_of(key: dict | None) -> list[dict]:
    """The data keys of each data set of a recorded key (None: unknown, none)."""
    return list(key.get("joint", [key])) if key else []


def with_data(recorded: dict | None, own: dict) -> dict:
    """A recorded data key with a further one, where that is of other examples; of the same ones, split another way, the
    recorded key alone, which `check_same_data` refuses."""
    parts, mine = parts_of(recorded), parts_of(own)
    further = [part for part in mine if part not in parts]
    if not parts or not further:
        return recorded or own
    of = lambda key: key.get("sha256") or key.get("source")  # noqa: E731
    known = set(map(of, parts))
    if None in known or any(of(part) is None or of(part) in known for part in further):
        return recorded or own
    return {"joint": [*parts, *further]}


def check_same_data(recorded: dict | None, task: Task, owner: str) -> None:
    """Refuse to mix splits: what was training data of `owner` would be test data of the task.

    Raises: InputError when the recorded data key (None: unknown) has not all the data sets that the task has.
    """
    own = task.data_key
    if recorded is not None and own != recorded and any(part not in parts_of(recorded) for part in parts_of(own)):
        apart = [key for key in {**recorded, **own} if recorded.get(key) != own.get(key)]
        raise InputError(
            f"{owner} was made on other images, so what it learned from could be what it is judged on here: "
            + ", ".join(f"{key} is {recorded.get(key)} there and {own.get(key)} here" for key in apart)
        )
