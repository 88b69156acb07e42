"""Configuration: dataclass schemas composed by Hydra (compose API only), with typed errors and a did-you-mean.

Groups: task, tokens, backbone, action, zoo, corrupt, pairs, distil, grpo, reward, critic, lab; `experiment/` files set
several at once. A file of `tasks/`, `tokens/` or `backbones/` is an option of its group by being there. Nothing is ever
instantiated from a `_target_`.
"""

import importlib
import pkgutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthnet.errors import InputError, missing_extra, unknown
from synthnet.grpo.config import GrpoConfig
from synthnet.grpo.score import RewardConfig
from synthnet.policy import tokens
from synthnet.policy import trunks as backbones
from synthnet.policy.policy import ActionConfig, PolicyConfig
from synthnet.runs.lab import LabConfig, SweepConfig
from synthnet.tasks import problems
from synthnet.tasks.task import Task, build_task
from synthnet.train.corrupt import CorruptConfig
from synthnet.train.critic import CriticConfig
from synthnet.train.distil import DistilConfig
from synthnet.train.pairs import PairsConfig
from synthnet.train.zoo import ZooConfig

CONFIG_DIR = Path(__file__).parent / "configs"
GROUPS = {
    "zoo": ZooConfig,
    "corrupt": CorruptConfig,
    "pairs": PairsConfig,
    "distil": DistilConfig,
    "grpo": GrpoConfig,
    "reward": RewardConfig,
    "critic": CriticConfig,
    "lab": LabConfig,
    "sweep": SweepConfig,
}


@dataclass
class Config:
    """Everything a training command reads. `run_dir` defaults to runs/<stage>-<task>-<seed>, `zoo_dir` to runs/zoo-<task>-0;
    `stages`: what `synthnet run` and sweeps do, one after the other; `memory`: GiB that one computation over a population
    may take; `threads`: 0 for all cores."""

    task: Any = None
    tokens: Any = None
    backbone: Any = None
    action: ActionConfig = field(default_factory=ActionConfig)
    zoo: ZooConfig = field(default_factory=ZooConfig)
    corrupt: CorruptConfig = field(default_factory=CorruptConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    distil: DistilConfig = field(default_factory=DistilConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    lab: LabConfig = field(default_factory=LabConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    stages: list[str] = field(default_factory=lambda: ["zoo", "pairs", "grpo"])
    k_max: int = 6
    imagined: int = 0
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    memory: float = 1.0
    run_dir: str | None = None
    zoo_dir: str | None = None
    policy_from: str | None = None

    def build_task(self) -> Task:
        return build_task(**vars(self.task))

    def policy_config(self) -> PolicyConfig:
        return PolicyConfig(vars(self.tokens), vars(self.backbone), self.action, self.k_max, imagined=self.imagined)


def compose(overrides: list[str]) -> tuple[Config, str]:
    """The composed configuration and its YAML text, from `key=value` and `group=option` overrides.

    Raises: InputError for an unknown group, option or key (with the nearest known one), or a value of the wrong type.
    """
    try:
        import hydra
        from hydra.core.config_store import ConfigStore
        from hydra.core.global_hydra import GlobalHydra
        from hydra.errors import HydraException
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
    except ImportError as error:
        raise missing_extra("hydra-core", "train") from error
    _register(ConfigStore.instance())
    GlobalHydra.instance().clear()
    version = {"version_base": None} if hydra.__version__ < "1.4" else {}
    try:
        with hydra.initialize_config_dir(config_dir=str(CONFIG_DIR), **version):
            selected, rest = _check_groups(overrides)
            known = OmegaConf.to_container(hydra.compose("config", overrides=selected))
            for override in rest:
                _check_key(override, known)
            added = [f"++{part}" if part.startswith("lab.schedules=") else part for part in rest]  # a dict that gains keys
            composed = hydra.compose("config", overrides=[*selected, *added])
            return OmegaConf.to_object(composed), OmegaConf.to_yaml(composed)
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        raise InputError(f"bad setting: {' '.join(str(cause).split())}") from error
    finally:
        GlobalHydra.instance().clear()


PACKAGES = {"task": problems, "tokens": tokens, "backbone": backbones}


def plugins(group: str) -> dict[str, type]:
    """Option name -> Config dataclass, for every public file of a group's package."""
    package = PACKAGES[group]
    names = [module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")]
    named = {name.replace("_", "-") if group == "task" else name: name for name in names}
    return {option: importlib.import_module(f"{package.__name__}.{name}").Config for option, name in named.items()}


def groups() -> dict[str, list[str]]:
    """The config groups and their options."""
    found = {
        **{group: list(plugins(group)) for group in PACKAGES},
        "action": ["default"],
        **{name: ["default"] for name in GROUPS},
    }
    for file in CONFIG_DIR.glob("*/*.yaml"):
        found.setdefault(file.parent.name, []).append(file.stem)
    return {group: sorted(options) for group, options in found.items()}


def _register(store) -> None:
    store.store(name="schema", node=Config)
    for group in PACKAGES:
        for name, schema in plugins(group).items():
            store.store(group=group, name=name, node=schema)
    for group, schema in {**GROUPS, "action": ActionConfig}.items():
        store.store(group=group, name="default", node=schema)


def explain(overrides: list[str]) -> str:
    """The composed configuration as YAML, with where each value comes from as a comment: the command line, an experiment
    file, the option of a group, or the defaults. Raises: InputError as `compose`."""
    from omegaconf import OmegaConf

    _, text = compose(overrides)
    given = {part.partition("=")[0] for part in overrides}
    chosen = {part.partition("=")[0]: part.partition("=")[2] for part in overrides if part.partition("=")[0] in groups()}
    layers = {}
    if "experiment" in chosen:
        file = CONFIG_DIR / "experiment" / f"{chosen['experiment']}.yaml"
        experiment = OmegaConf.to_container(OmegaConf.load(file))
        for entry in experiment.pop("defaults", []):
            for group, option in entry.items():
                chosen.setdefault(group.removeprefix("override /"), option)
        layers = dict.fromkeys(_flat_keys(experiment), f"experiment={chosen['experiment']}")
    lines, path, written = [], [], text.splitlines()
    for line, after in zip(written, [*written[1:], ""], strict=True):
        if line.lstrip().startswith("- "):
            lines.append(line)
            continue
        path = [*path[: (len(line) - len(line.lstrip())) // 2], line.strip().partition(":")[0]]
        name, group = ".".join(path), path[0]
        fallback = f"{group}={chosen[group]}" if group in chosen else "default"
        origin = "command line" if name in given else layers.get(name, fallback)
        opens = line.endswith(":") and not after.lstrip().startswith("- ")
        lines.append(line if opens else f"{line}  # {origin}")
    return "\n".join(lines) + "\n"


def _check_groups(overrides: list[str]) -> tuple[list[str], list[str]]:
    """Split overrides into group choices (checked) and the rest."""
    known, selected, rest = groups(), [], []
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise InputError(f"expected key=value, got {override!r}")
        if name not in known:
            rest.append(override)
            continue
        if value not in known[name]:
            raise unknown(f"option of group {name}", value, known[name])
        selected.append(f"+{override}" if name == "experiment" else override)
    return selected, rest


def _check_key(override: str, known: dict) -> None:
    key = override.partition("=")[0]
    keys = set(_flat_keys(known))
    if key not in keys:
        raise unknown("setting", key, keys | set(groups()))


def _flat_keys(tree: dict, prefix: str = "") -> list[str]:
    keys = []
    for name, value in tree.items():
        keys.append(prefix + name)
        if isinstance(value, dict):
            keys += _flat_keys(value, f"{prefix}{name}.")
    return keys
