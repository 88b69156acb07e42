"""The stages: from composed settings to a finished one. zoo → (corrupt) → pairs → (distil) → grpo → (critic).

A stage is an entry of STAGES: the settings that are its own (a config group of its name), the function that runs it, and what
else a live run of it listens to.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from synthnet.bundled import policy_path
from synthnet.engine import Network, set_memory_budget
from synthnet.errors import InputError, unknown
from synthnet.grpo import GrpoConfig, RewardConfig, train_grpo
from synthnet.policy import MixtureKnobs, Policy, covering, read_policy, tokens, told_spec, trunks, with_experts
from synthnet.runs import Dials, RunDirectory, Setup, ranks
from synthnet.settings import hot_knobs, hot_value, option
from synthnet.tasks import Task, check_same_data, with_data
from synthnet.train import (
    CorruptConfig,
    CriticConfig,
    DistilConfig,
    PairsConfig,
    Zoo,
    ZooConfig,
    build_zoo,
    corrupted_states,
    member_path,
    policy_of_run,
    train_corrupt,
    train_critic,
    train_distil,
    train_pairs,
)

SHAPING = ("tokens", "backbone", "action", "k_max", "imagined")  # settings that a policy of other ones does not fit


def zoo(config, task: Task, setup: Setup) -> Path:
    _refuse_variants("zoo", task)
    anywhere = replace(config, zoo=replace(config.zoo, executor=None, workers=2, threads=1))  # any may go on with it
    return build_zoo(task, config.zoo, replace(setup, text=anywhere.text(task)))


def corrupt(config, task: Task, setup: Setup) -> Path:
    _refuse_variants("corrupt", task)
    return train_corrupt(first_policy(config, task, setup), task, open_zoos(config, task), config.corrupt, config.pairs, setup)


def pairs(config, task: Task, setup: Setup) -> Path:
    _refuse_variants("pairs", task)
    chains = corrupter(config, task) if config.pairs.corruptor else None
    return train_pairs(first_policy(config, task, setup), task, open_zoos(config, task), config.pairs, setup, chains)


def distil(config, task: Task, setup: Setup) -> Path:
    leads = config.distil.standardised or config.imagined  # from nothing else, distil leads nowhere
    policy = first_policy(config, task, setup) if leads else start_policy(config, task, setup)
    zoos = open_zoos(config, task) if config.distil.reads_zoo or config.zoo_dir else []
    return train_distil(policy, task, zoos, config.distil, config.pairs, setup)


def grpo(config, task: Task, setup: Setup) -> Path:
    alone = task.data is None and not task.joint  # rewards alone: there is nothing else to begin with
    policy = first_policy(config, task, setup) if alone else start_policy(config, task, setup)
    return train_grpo(policy, task, config.grpo, config.reward, setup)


def critic(config, task: Task, setup: Setup) -> Path:
    _refuse_variants("critic", task)
    return train_critic(start_policy(config, task, setup), task, config.critic, setup)


@dataclass(frozen=True)
class Stage:
    """config: its settings; run(config, task, setup): what it does; live: whether runs of it take requests, and `also`: further
    config groups that these may change; ranks: whether torchrun may spread it over processes."""

    config: type
    run: Callable[..., Path]
    live: bool = True
    also: Mapping[str, type] = field(default_factory=dict)
    ranks: bool = False


STAGES = {  # in the order in which they build on one another
    "zoo": Stage(ZooConfig, zoo, live=False),
    "corrupt": Stage(CorruptConfig, corrupt),
    "pairs": Stage(PairsConfig, pairs, ranks=True),
    "distil": Stage(DistilConfig, distil, ranks=True),
    "grpo": Stage(GrpoConfig, grpo, also={"reward": RewardConfig}, ranks=True),
    "critic": Stage(CriticConfig, critic),
}


def live_sections(stage: str | None) -> dict[str, type]:
    """Config group -> its dataclass of all that a live run of a stage listens to; nothing where it does not listen."""
    if stage not in STAGES or not STAGES[stage].live:
        return {}
    return {stage: STAGES[stage].config, **STAGES[stage].also, "backbone": MixtureKnobs}


def run_stage(stage: str, config, given: Mapping[str, object], command: Sequence[str]) -> Path:
    """Run one stage; returns what it made: the zoo folder, or the policy file. `given`: the settings that were given by name.
    Raises: InputError for bad settings."""
    use_resources(config)
    check_schedules(stage, config)
    if STAGES[stage].ranks:
        ranks.start()
    elif ranks.world() > 1:
        raise InputError(f"{stage} runs in one process; torchrun is for {', '.join(n for n in STAGES if STAGES[n].ranks)}")
    task = config.build_task()
    return STAGES[stage].run(config, task, setup_of(stage, task, config, given, command))


def setup_of(stage: str, task: Task, config, given: Mapping[str, object], command: Sequence[str]) -> Setup:
    folder = Path(config.run_dir or f"runs/{stage}-{task.name}-{config.seed}")
    loop = getattr(getattr(config, stage, None), "loop", None)
    rest = (config.seed, config.device, config.lab, loop.updates if loop else 0)
    return Setup(stage, task.name, folder, config.text(task), given, tuple(command), *rest)


def run_stages(config, given: Mapping[str, object], command: Sequence[str]) -> Path:
    """Run `stages` one after the other, each in a folder of its own in `run_dir`, on the zoo and the policy of those before it;
    returns what the last one made. What an earlier call finished is not made again.

    Raises: InputError for bad settings.
    """
    check_stages(config)
    setup = setup_of("run", config.build_task(), config, given, command)
    root, own = setup.folder, {name: value for name, value in given.items() if name not in ("run_dir", "stages")}
    made: Path | None = None
    if not config.zoo_dir and "zoo" in config.stages:
        config, own = replace(config, zoo_dir=str(root / "zoo")), {**own, "zoo_dir": str(root / "zoo")}
    with RunDirectory(setup):
        for stage in config.stages:
            folder = root / stage
            mine, told = replace(config, run_dir=str(folder)), {**own, "run_dir": str(folder)}
            if made:  # the policy brings along what it is built of
                mine = replace(mine, policy_from=str(made))
                told = {**without_shape(told), "policy_from": str(made)}
            done = folder / "policy.safetensors"
            if not done.exists():
                done = run_stage(stage, mine, told, ["synthnet", stage, *as_text(told)])
            made = made if stage in ("zoo", "corrupt") else done
    return made or root


def as_text(given: Mapping[str, object]) -> list[str]:
    """Settings as a person would type them, for the record (`shlex.join` quotes them for a shell); nothing reads them back."""
    return [f"{name}={'null' if value is None else value}".replace(", ", ",") for name, value in given.items()]


def without_shape(given: Mapping[str, object]) -> dict[str, object]:
    """Settings but for those of what a policy is built of, which a policy that is there already brings along."""
    return {name: value for name, value in given.items() if name.partition(".")[0] not in SHAPING}


def check_stages(config) -> None:
    """Refuse a configuration without stages, with unknown ones, or with what one cannot work with."""
    strange = [stage for stage in config.stages if stage not in STAGES]
    if strange or not config.stages:
        raise InputError(f"stages must list some of {', '.join(STAGES)}, got {strange or 'none'}")
    for stage in config.stages:
        check_schedules(stage, config)


def check_schedules(stage: str, config) -> None:
    """Refuse, before any work, what a stage's hot knobs cannot hold, and schedules of knobs that no stage has."""
    hot = {name for known in STAGES for name in hot_knobs(live_sections(known))}
    for name in config.lab.schedules:
        if name not in hot:
            raise unknown("hot knob in lab.schedules", name, hot)
    sections = {group: getattr(config, group) for group in live_sections(stage) if group != "backbone"}
    Dials(sections, {name: each for name, each in config.lab.schedules.items() if name.partition(".")[0] in sections})


MOST_THREADS = 8  # for each core


def use_resources(config) -> None:
    if config.threads > MOST_THREADS * (cores := os.cpu_count() or 1):
        raise InputError(f"threads={config.threads} on a machine of {cores} cores would only wait for one another; use fewer")
    if config.threads:
        torch.set_num_threads(config.threads)
    set_memory_budget(config.memory)


def open_zoos(config, task: Task) -> list[Zoo]:
    """The zoo of each member that a stage reads, checked. Raises: InputError for another architecture or other data."""
    folder, zoos = config.zoo_dir or f"runs/zoo-{task.name}-0", []
    for member in task.members:
        one = Zoo.open(member_path(task, member, folder))
        if wrong := member.network.spec.differences(one.arch.spec()):
            raise InputError(f"{one.path} holds {one.arch}, not the net of {member.name}: {'; '.join(wrong)}")
        check_same_data(one.data, member, str(one.path))
        zoos.append(one)
    return zoos


def corrupter(config, task: Task) -> Callable[[Tensor, Network], Tensor]:
    """What makes chains of clean states with the corruptor that pairs.corruptor names. Raises: InputError for anything else."""
    path = Path(config.pairs.corruptor)
    corruptor = read_policy(path / "policy.safetensors" if path.is_dir() else path)
    if not corruptor.record.get("corruptor"):
        raise InputError(f"{path} is a policy, not a corruptor: make one with synthnet corrupt")
    check_same_data(corruptor.record.get("data"), task, str(path))
    return lambda states, net: corrupted_states(corruptor, states[:, -1], states.shape[1], net, config.seed)


def first_policy(config, task: Task, setup: Setup) -> Policy:
    """The policy that a stage begins with: the one of policy_from, or else one that knows nothing yet."""
    if config.policy_from:
        return start_policy(config, task, setup)
    archs = list(dict.fromkeys(member.arch for member in task.members))
    policy = Policy.create(told_spec(config.policy_config(), task.members[0].variants), archs, config.seed)
    members = [[member.name, member.arch.label] for member in task.members]
    policy.record |= {"task": task.members[0].name, "data": task.data_key, "members": members}
    policy.record |= {} if task.joint else {"inputs": task.inputs}
    _meet(policy, task)
    return policy


def named_policy(source: str) -> Policy:
    """A policy by its file, a bundled policy's name, or a run directory."""
    return read_policy(policy_of_run(Path(source)) if Path(source).is_dir() else policy_path(source))


def start_policy(config, task: Task, setup: Setup) -> Policy:
    """The policy of policy_from: a file, a bundled policy's name, or a run directory (of a stopped run: its best so far); with
    more experts, where asked. Raises: InputError where there is none, or where settings given by name ask for another one."""
    if not config.policy_from:
        raise InputError(
            "this stage starts from a policy: pass policy_from=FILE, a run directory, or a bundled policy's name (distil also "
            "begins with a new one where its first updates see whitened logits, distil.standardised=N, or where the new "
            "one imagines examples, imagined=N)"
        )
    policy = named_policy(config.policy_from)
    if "backbone.experts" in setup.given:
        policy = with_experts(policy, config.backbone.experts, config.seed)
    _check_same_policy(policy, config, setup.given)
    policy = covering(policy, [member.arch for member in task.members], config.seed)
    _meet(policy, task)
    for member in task.members:
        policy.layout(member.network)
        if member.arch not in policy.archs:
            policy.archs = [*policy.archs, member.arch]
    data = with_data(policy.record.get("data"), task.data_key)
    check_same_data(data, task, config.policy_from)
    policy.record["data"] = data
    policy.drop_critic()  # it foresaw the policy as it was
    return policy.train()


def _check_same_policy(policy: Policy, config, given: Mapping[str, object]) -> None:
    """Refuse settings given by name that say another policy than the one that a stage goes on from; what its mixtures of
    experts read at every forward is taken over."""
    mine, asked = asdict(policy.config), asdict(config.policy_config())
    for group, package in (("tokens", tokens), ("backbone", trunks)):  # files know nothing of settings younger than they are
        mine[group] = asdict(option(package, mine[group]["name"], group).Config(**mine[group]))
    for name in given:
        group, _, key = name.partition(".")
        if group not in SHAPING or name == "action":
            continue
        has, wants = (
            (each[group].get(key or "name") if isinstance(each[group], dict) else each[group]) for each in (mine, asked)
        )
        if group == "backbone" and key in policy.settings:
            policy.settings = {**policy.settings, key: hot_value(name, wants, {"backbone": MixtureKnobs})}
        elif has != wants:
            raise InputError(
                f"{name} is {wants} here and {has} in the policy of policy_from, which keeps what it was made with: leave the "
                "setting out, or make a new policy with synthnet pairs"
            )


def _refuse_variants(stage: str, task: Task) -> None:
    if any(member.variants for member in task.members):
        raise InputError(f"{stage} is of one task, and {task.name} has variants: train it by distil or grpo, or synthnet learn")


def _meet(policy: Policy, task: Task) -> None:
    """Let a policy keep what its file says of the tasks that it is trained for: the statistics of their data where it is told
    of these, and what their specs are. Raises: InputError for other specs than it is told."""
    mine = task.members[0].variants
    if policy.reads_spec and policy.variants and mine != policy.variants:
        raise InputError(f"the policy is told {policy.variants.shown}; task {task.name}: {mine.shown if mine else 'no spec'}")
    policy.variants, record = mine, policy.record
    before = record.get("members") or [[record["task"], arch.label] for arch in policy.archs if "task" in record]
    members = [*before, *([member.name, member.arch.label] for member in task.members)]
    record["members"] = [each for number, each in enumerate(members) if each not in members[:number]]
    if len({name for name, _ in members}) > 1:
        inputs = {member.name: member.inputs for member in task.members}
        record["inputs_of"] = {record.get("task"): record.get("inputs", {}), **record.get("inputs_of", {}), **inputs}
    if policy.reads_data:
        policy.data_sets |= {member.name: [round(x, 4) for x in member.statistics.tolist()] for member in task.members}
