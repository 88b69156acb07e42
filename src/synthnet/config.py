"""Configuration: dataclass schemas composed by Hydra (compose API only), with typed errors and a did-you-mean.

Groups: task, tokens, backbone, action, one for each stage, reward, lab, sweep; `experiment/` files set several at once. A file
of `tasks/problems/`, `policy/tokens/` or `policy/trunks/` is an option of its group by being there. Nothing is ever
instantiated from a `_target_`. What was composed travels as a typed object; run directories record it, and read it back.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from synthnet.errors import InputError, missing_extra, unknown
from synthnet.grpo import RewardConfig
from synthnet.policy import ActionConfig, PolicyConfig, tokens, trunks
from synthnet.runs import LabConfig, SweepConfig, read_settings
from synthnet.settings import PATH, Knob, check_settings, knobs_of, option, options, setting
from synthnet.stages import STAGES, live_sections
from synthnet.tasks import GymConfig, OwnConfig, Task, build_task, is_gym, names_itself, note, problems

CONFIG_DIR = Path(__file__).parent / "configs"
PACKAGES = {"task": problems, "tokens": tokens, "backbone": trunks}
STAGE_GROUPS = {name: stage.config for name, stage in STAGES.items()}
GROUPS = {"action": ActionConfig, **STAGE_GROUPS, "reward": RewardConfig, "lab": LabConfig, "sweep": SweepConfig}


@dataclass
class _Config:
    """Everything a training command reads."""

    task: Any = None
    tokens: Any = None
    backbone: Any = None
    stages: list[str] = setting(["zoo", "pairs", "grpo"], "what `synthnet run` and sweeps do, one after the other")
    k_max: int = setting(6, "the most synth steps that a policy serves", (1, 64))
    imagined: int = setting(0, "examples that a policy makes up for each number of steps left (0: none)", (0, 1 << 20))
    seed: int = setting(0, "of all draws of the run")
    device: str = setting("auto", "auto takes a GPU that this torch build serves", choices=("auto", "cpu", "cuda"))
    threads: int = setting(0, "of the process (0: all cores)", (0, 4096))
    memory: float = setting(1.0, "that one computation over a population may take", (1e-3, 1e6), unit="GiB")
    run_dir: str | None = setting(None, "where the run lies (null: runs/STAGE-TASK-SEED)", unit=PATH)
    zoo_dir: str | None = setting(None, "the zoo to learn from (null: runs/zoo-TASK-0)", unit=PATH)
    policy_from: str | None = setting(
        None, "the policy to go on from: a file, a run directory, or a bundled policy's name", unit=PATH
    )

    def build_task(self) -> Task:
        return build_task(**vars(self.task))

    def policy_config(self) -> PolicyConfig:
        return PolicyConfig(vars(self.tokens), vars(self.backbone), self.action, self.k_max, imagined=self.imagined)

    def text(self, task: Task) -> str:
        """As YAML, with what tells the task from others of its name; `read_config` gives the settings back."""
        from omegaconf import OmegaConf

        own = literal(asdict(replace(self, run_dir=None)))  # a run is where it lies
        return OmegaConf.to_yaml(OmegaConf.create(own), resolve=True) + note(self.task.name, task)


Config = make_dataclass(
    "Config", [(name, kind, field(default_factory=kind)) for name, kind in GROUPS.items()], bases=(_Config,)
)


def plugins(group: str) -> dict[str, type]:
    """Option name -> Config dataclass, for every public file of a group's package."""
    found = {name: option(PACKAGES[group], name, group).Config for name in options(PACKAGES[group])}
    return {name.replace("_", "-") if group == "task" else name: kind for name, kind in found.items()}


def groups() -> dict[str, list[str]]:
    """The config groups and their options."""
    found = {**{group: list(plugins(group)) for group in PACKAGES}, **{name: ["default"] for name in GROUPS}}
    for file in CONFIG_DIR.glob("*/*.yaml"):
        found.setdefault(file.parent.name, []).append(file.stem)
    return {group: sorted(names) for group, names in found.items()}


@cache
def _paths() -> set[str]:
    return {name for name, knob in all_knobs().items() if knob.unit == PATH}


def plain_path(text: str) -> tuple[str, str | None] | None:
    """Name and value of a `key=value` text whose setting is a path: the value as it stands, whatever is in it, less quotes
    around it. None for any other setting. Raises: InputError for an empty one."""
    name, is_setting, value = text.partition("=")
    if not is_setting or (name not in _paths() and not (name == "task" and names_itself(value))):
        return None
    if not value:
        raise InputError(f"{name}= names no path: name one, or leave the setting away")
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    return name, None if value == "null" else value


def parse(overrides: list[str]) -> dict[str, object]:
    """Setting -> value from `key=value` texts, in Hydra's grammar but for paths; the last of one name counts.

    Raises: InputError for what is none, or has several values.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    found: dict[str, object] = {}
    for text in overrides:
        if path := plain_path(text):
            found[path[0]] = path[1]
            continue
        try:
            override = OverridesParser.create().parse_override(text)
            swept = override.is_sweep_override()
            value = None if swept else override.value()
        except HydraException as error:
            if "=" not in text:
                raise InputError(f"expected key=value, got {text!r}") from error
            raise InputError(f"bad setting {text[:200]!r}: {' '.join(str(error).split())[:200]}") from error
        if swept or override.is_delete() or override.is_add():
            raise InputError(f"expected key=value, got {text!r}" + (": several values are for synthnet sweep" if swept else ""))
        found[override.key_or_group] = value
    return found


def compose(given: Mapping[str, object] | list[str]):
    """The composed configuration of settings given by name (a mapping, or `key=value` texts).

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
    given = parse(given) if isinstance(given, list) else given
    _register(ConfigStore.instance())
    known, selected = groups(), []
    for name in (each for each in given if each in known):
        if name == "task" and names_itself(given[name]):
            selected.append("task=gym" if is_gym(given[name]) else "task=own")
            continue
        if given[name] not in known[name]:
            raise unknown(f"option of group {name}", str(given[name]), known[name])
        selected.append(f"{'+' if name == 'experiment' else ''}{name}={given[name]}")
    GlobalHydra.instance().clear()
    version = {"version_base": None} if hydra.__version__ < "1.4" else {}
    try:
        with hydra.initialize_config_dir(config_dir=str(CONFIG_DIR), **version):
            composed = hydra.compose("config", overrides=selected)
        keys = set(flat(OmegaConf.to_container(composed)))
        if names_itself(given.get("task")):
            composed.task.name = literal(given["task"])
        for name, value in given.items():
            if name in known:
                continue
            if name not in keys:
                raise unknown("setting", name, keys | set(known))
            table = isinstance(value, dict)
            OmegaConf.update(composed, name, literal(value), merge=table, force_add=table)
        made = OmegaConf.to_object(composed)
        for name, knob in knobs_of("", _Config).items():
            if knob.bounds or knob.choices:
                knob.check(getattr(made, name))
        for group in (*PACKAGES, *GROUPS):  # whether or not this command reads them: a wrong one is a slip
            check_settings(group, getattr(made, group))
        return made
    except InputError:
        raise
    except (HydraException, OmegaConfBaseException, OverflowError, ValueError) as error:
        cause = error.__cause__ or error
        raise InputError(f"bad setting: {' '.join(str(cause).split())[:400]}") from error
    finally:
        GlobalHydra.instance().clear()


def literal(value: object) -> object:
    """A value in which OmegaConf reads no interpolation: what a person or a file calls ${x} is called that."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", value)
    if isinstance(value, dict):
        return {name: literal(each) for name, each in value.items()}
    return [literal(each) for each in value] if isinstance(value, list | tuple) else value


def read_config(folder: Path):
    """The configuration that a run directory records. Raises: InputError where it is no run of ours."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree = read_settings(folder)
    try:
        schema = OmegaConf.structured(Config)
        for group in PACKAGES:
            name = tree[group]["name"]
            own = GymConfig if is_gym(name) else OwnConfig
            schema[group] = OmegaConf.structured(own if names_itself(name) else plugins(group)[name])
        return OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.create(literal(tree))))
    except (OmegaConfBaseException, KeyError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(
            f"{folder}/config.yaml is of another SynthNet, or damaged ({text}); repeat the run's command"
        ) from error


def _register(store) -> None:
    store.store(name="schema", node=Config)
    for group in PACKAGES:
        for name, schema in plugins(group).items():
            store.store(group=group, name=name, node=schema)
    store.store(group="task", name="own", node=OwnConfig)
    store.store(group="task", name="gym", node=GymConfig)
    for group, schema in GROUPS.items():
        store.store(group=group, name="default", node=schema)


def explain(overrides: list[str]) -> str:
    """The composed configuration as YAML, with where each value comes from as a comment: the command line, an experiment
    file, the option of a group, or the defaults. Raises: InputError as `compose`."""
    from omegaconf import OmegaConf

    given, known, layers = parse(overrides), groups(), {}
    tree = asdict(compose(given))
    chosen = {name: value for name, value in given.items() if name in known}
    if "experiment" in chosen:
        file = CONFIG_DIR / "experiment" / f"{chosen['experiment']}.yaml"
        experiment = OmegaConf.to_container(OmegaConf.load(file))
        for entry in experiment.pop("defaults", []):
            for group, name in entry.items():
                chosen.setdefault(group.removeprefix("override /"), name)
        layers = dict.fromkeys(flat(experiment), f"experiment={chosen['experiment']}")
    fallback = {group: f"{group}={name}" for group, name in chosen.items()}
    origins = {name: layers.get(name, fallback.get(name.partition(".")[0], "default")) for name in flat(tree)}
    origins |= dict.fromkeys(given, "command line")
    return "".join(f"{line}\n" for line in _explained(tree, origins))


def _explained(tree: dict, origins: Mapping[str, str], prefix: str = "", indent: str = ""):
    import yaml  # comes with omegaconf

    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:"
            yield from _explained(value, origins, f"{prefix}{name}.", f"{indent}  ")
        else:
            shown = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
            yield f"{indent}{name}: {shown}  # {origins.get(prefix + name, 'default')}"


def flat(tree: dict, prefix: str = "") -> list[str]:
    """The full names of all settings of a nested configuration, groups included."""
    keys = []
    for name, value in tree.items():
        keys.append(prefix + name)
        if isinstance(value, dict):
            keys += flat(value, f"{prefix}{name}.")
    return keys


def all_knobs() -> dict[str, Knob]:
    """Full name -> knob of every setting, in the order of the configuration; plug-ins of a group follow one another, and of
    what several have, the first one's default is told."""
    found: dict[str, Knob] = {}
    for group in PACKAGES:
        for kind in plugins(group).values():
            found = {**knobs_of(group, kind), **found} if not found else {**found, **_new(knobs_of(group, kind), found)}
    for group, kind in GROUPS.items():
        found |= knobs_of(group, kind)
    own = {each.name for each in fields(_Config)} - set(PACKAGES)
    found |= {name: knob for name, knob in knobs_of("", _Config).items() if name in own}
    return {name: knob for name, knob in found.items() if not name.endswith(".name")}


def _new(more: dict, known: dict) -> dict:
    return {name: knob for name, knob in more.items() if name not in known}


KNOB_COLUMNS = ["setting", "what", "type", "default", "live", "bounds or choices"]


def knob_rows() -> list[list[str]]:
    """The table of every setting: what it is for, its type and default, which live runs can change it, within which bounds."""
    rows = []
    for name, knob in all_knobs().items():
        kind = knob.kind.__name__ if isinstance(knob.kind, type) and "[" not in str(knob.kind) else str(knob.kind)
        kind = kind.replace("synthnet.runs.lab.", "").replace("|", "or").replace("  ", " ")
        default = "null" if knob.default is None else str(knob.default).lower() if knob.plain is bool else str(knob.default)
        stages = [stage for stage in STAGES if name.partition(".")[0] in live_sections(stage)] if knob.hot else []
        live = f"hot: {', '.join(stages)}" if knob.hot else "cold"
        what = f"{knob.help} ({knob.unit})" if knob.unit else knob.help
        rows.append([name, what, kind, default, live, knob.allowed])
    return rows
