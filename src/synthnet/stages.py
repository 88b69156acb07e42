"""The training commands: from `key=value` settings to a finished stage. zoo → (corrupt) → pairs → (distil) → grpo →
(critic)."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from synthnet.config import Config, compose
from synthnet.engine.network import Network
from synthnet.engine.plan import set_memory_budget
from synthnet.errors import InputError, unknown
from synthnet.grpo.calibrate import calibrate, recommended
from synthnet.grpo.loop import train_grpo
from synthnet.policy.file import load_policy
from synthnet.runs import ranks
from synthnet.runs.directory import RunDirectory, started_by
from synthnet.runs.fork import without_shape
from synthnet.runs.knobs import HOT, LIVE_SECTIONS, STAGES, Dials
from synthnet.runs.status import read_settings
from synthnet.tasks.task import Task, build_task, check_same_data
from synthnet.train.corrupt import corrupted_states, train_corrupt
from synthnet.train.critic import train_critic
from synthnet.train.distil import train_distil
from synthnet.train.pairs import train_pairs
from synthnet.train.start import fresh_policy, start_policy
from synthnet.train.zoo import Zoo, ZooConfig, build_zoo, check_zoo, import_zoo, member_path, shard_path, train_shard

ZOO_WORKERS = ("zoo.executor", "zoo.workers", "zoo.threads")


def run_stages(settings: list[str]) -> Path:
    """Run `stages` one after the other, each in a folder of its own in `run_dir`, on the zoo and the policy of those before it;
    returns what the last one made. What an earlier call finished is not made again.

    Raises: InputError for bad settings.
    """
    config, text = compose(settings)
    check_stages(config)
    root = Path(config.run_dir or f"runs/run-{config.build_task().name}-{config.seed}")
    own = [part for part in settings if part.partition("=")[0] not in ("run_dir", "stages")]
    zoo = [] if config.zoo_dir or "zoo" not in config.stages else [f"zoo_dir={root / 'zoo'}"]
    made: Path | None = None
    with started(["synthnet", "run", *settings]), RunDirectory(root, text):
        for stage in config.stages:
            before = [part for part in without_shape(own) if part.partition("=")[0] != "policy_from"] if made else own
            policy = [f"policy_from={made}"] if made else []
            folder = root / stage
            done = folder / "policy.safetensors"
            if not done.exists():
                done = run_stage(stage, [*before, *zoo, *policy, f"run_dir={folder}"])
            made = made if stage in ("zoo", "corrupt") else done
    return made or root


def check_stages(config: Config) -> list[str]:
    """The stages of a configuration. Raises: InputError where there are none, unknown ones, or what one cannot work with."""
    if not config.stages or (strange := [stage for stage in config.stages if stage not in STAGES]):
        raise InputError(f"stages must list some of {', '.join(STAGES)}, got {config.stages or strange}")
    for stage in config.stages:
        check_knobs(stage, config)
    return config.stages


def run_command(command: str, settings: list[str]) -> Path:
    """What a training command made, given by name: a stage, or `run`. Raises: InputError for any other."""
    if command == "run":
        return run_stages(settings)
    if command not in STAGES:
        raise InputError(f"{command} cannot be run again this way; repeat its command")
    return run_stage(command, settings)


@contextmanager
def started(command: list[str]) -> Iterator[None]:
    """Inside, run directories record this command."""
    token = started_by.set(command)
    try:
        yield
    finally:
        started_by.reset(token)


def run_stage(stage: str, settings: list[str]) -> Path:
    """Run one stage; returns what it made: the zoo folder, or the policy file. Raises: InputError for bad settings."""
    with started(["synthnet", stage, *settings]):
        return _run_stage(stage, settings)


def _run_stage(stage: str, settings: list[str]) -> Path:
    config, text = compose(settings)
    _use_resources(config)
    check_knobs(stage, config)
    if stage in ("pairs", "distil", "grpo"):
        ranks.start()
    elif ranks.world() > 1:
        raise InputError(f"{stage} runs in one process; torchrun is for pairs, distil and grpo")
    task = config.build_task()
    run_dir = config.run_dir or f"runs/{stage}-{task.name}-{config.seed}"
    if stage == "zoo":
        text = compose([part for part in settings if part.partition("=")[0] not in ZOO_WORKERS])[1]  # any may go on with it
        return build_zoo(task, config.zoo, run_dir, text, config.device)
    if stage == "grpo":
        policy = start_policy(config, task, settings)
        return train_grpo(policy, task, config.grpo, config.reward, run_dir, text, config.seed, config.device, config.lab)
    if stage == "critic":
        policy = start_policy(config, task, settings)
        return train_critic(policy, task, config.critic, run_dir, text, config.seed, config.device, config.lab)
    zoos = _open_zoos(config, task)
    leads = stage != "distil" or config.distil.standardised or config.imagined  # distil from nothing else leads nowhere
    new = not config.policy_from and leads
    policy = fresh_policy(config, task) if new else start_policy(config, task, settings)
    if stage == "distil":
        return train_distil(
            policy, task, zoos, config.distil, config.pairs, run_dir, text, config.seed, config.device, config.lab
        )
    if stage == "corrupt":
        return train_corrupt(
            policy, task, zoos, config.corrupt, config.pairs, run_dir, text, config.seed, config.device, config.lab
        )
    corrupt = _corrupter(config, task) if config.pairs.corruptor else None
    return train_pairs(policy, task, zoos, config.pairs, run_dir, text, config.seed, config.device, config.lab, corrupt)


def check_knobs(stage: str, config: Config) -> None:
    """Refuse, before any work, what a stage's hot knobs cannot hold, and schedules of knobs that no stage has."""
    schedules = config.lab.schedules
    for name in schedules:
        if name not in HOT:
            raise unknown("hot knob in lab.schedules", name, HOT)
    sections = {group: getattr(config, group) for group in LIVE_SECTIONS.get(stage, ()) if group != "backbone"}
    Dials(sections, {name: schedules[name] for name in schedules if name.partition(".")[0] in sections})


def _use_resources(config: Config) -> None:
    if config.threads < 0:
        raise InputError(f"threads must not be negative, got {config.threads}")
    if config.threads:
        torch.set_num_threads(config.threads)
    set_memory_budget(config.memory)


def _corrupter(config: Config, task: Task) -> Callable[[Tensor, Network], Tensor]:
    """What makes chains of clean states with the corruptor that pairs.corruptor names. Raises: InputError for anything else."""
    path = Path(config.pairs.corruptor)
    corruptor = load_policy(path / "policy.safetensors" if path.is_dir() else path)
    if not corruptor.record.get("corruptor"):
        raise InputError(f"{path} is a policy, not a corruptor: make one with synthnet corrupt")
    check_same_data(corruptor.record.get("data"), task, str(path))
    return lambda states, net: corrupted_states(corruptor, states[:, -1], states.shape[1], net, config.seed)


def _open_zoos(config: Config, task: Task) -> list[Zoo]:
    """The zoo of each member that a stage reads, checked. Raises: InputError for another architecture or other data."""
    folder, zoos = config.zoo_dir or f"runs/zoo-{task.name}-0", []
    for member in task.members:
        zoo = Zoo.open(member_path(task, member, folder))
        if wrong := member.network.spec.differences(zoo.arch.spec()):
            raise InputError(f"{zoo.path} holds {zoo.arch}, not the net of {member.name}: {'; '.join(wrong)}")
        check_same_data(zoo.data, member, str(zoo.path))
        zoos.append(zoo)
    return zoos


def run_calibration(settings: list[str]) -> str:
    """`synthnet calibrate`: measure each sigma, print the table, return the settings that follow."""
    from synthnet.report import table

    config, _ = compose(settings)
    _use_resources(config)
    check_knobs("grpo", config)
    task, rows, measured = config.build_task(), [], []
    policy = start_policy(config, task, settings)
    for row in calibrate(policy, task, config.grpo, config.reward, config.seed, config.device):
        measured.append(row)
        dimension = "–" if row.dimension is None else f"{row.dimension:,.0f}"
        numbers = [
            f"{row.reward:.4f}",
            f"{row.drop:.4f}",
            f"{row.spread:.5f}",
            f"{row.snr:.1f}",
            f"{row.cosine:.3f}",
            dimension,
        ]
        rows.append([f"{row.sigma:g}", *numbers, "yes" if row.accepted else ""])
    heads = ["sigma", "reward", "drop", "spread", "signal/noise", "half-batch cosine", "effective dimension", "accepted"]
    table(f"calibration of GRPO on {task.name}", heads, rows)
    if not any(row.accepted for row in measured):
        warnings.warn(
            "no sigma meets both rules (cost, signal to noise); this is the one with the most agreement", stacklevel=2
        )
    sigma, batch = recommended(measured, config.reward, len(task.members[0].data(config.reward.split)[1]))
    by = " grpo.sigma_by=role" if config.grpo.sigma_by == "role" else ""
    return f"grpo.sigma={sigma:g} reward.batch={batch}{by}"


def run_shard(folder: Path, number: int) -> Path:
    """`synthnet shard ZOO NUMBER`, what the workers of a zoo's executor run: one shard of the zoo whose run directory is
    `folder`. What is there already is left alone. Raises: InputError where the folder is none, or has no such shard."""
    folder = folder.resolve()
    settings, shard = read_settings(folder), shard_path(folder, number)
    if shard.exists():
        return shard
    try:
        task, config = build_task(**settings["task"]), ZooConfig(**settings["zoo"])
        device, memory = settings["device"], settings["memory"]
        set_memory_budget(memory)
        check_zoo(config)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder}/config.yaml is not that of a zoo ({error})") from error
    members = [one for one in task.members if len(task.members) == 1 or member_path(task, one, folder.parent) == folder]
    if not members:
        raise InputError(f"{folder} is the zoo of no member of {task.name}; it was moved or renamed")
    train_shard(members[0], config, number, shard, device)
    return shard


def import_runs(settings: list[str]) -> Path:
    """`synthnet zoo import DIR [task=NAME] [run_dir=PATH]`."""
    if not settings:
        raise InputError("expected: synthnet zoo import DIR [task=NAME] [run_dir=PATH]")
    folder, *rest = settings
    options = dict(part.partition("=")[::2] for part in rest)
    if extra := sorted(set(options) - {"task", "run_dir"}):
        raise InputError(f"zoo import takes task=NAME and run_dir=PATH, got {', '.join(extra)}")
    return import_zoo(folder, options.get("run_dir", f"runs/zoo-{Path(folder).name}-0"), options.get("task")).path
