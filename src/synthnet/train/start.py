"""The policy that a stage begins with: one that is there already, or a new one."""

from dataclasses import asdict
from pathlib import Path

from synthnet.config import PACKAGES, Config, plugins
from synthnet.errors import InputError
from synthnet.policy.file import load_policy
from synthnet.policy.policy import Policy
from synthnet.runs.fork import SHAPING
from synthnet.runs.knobs import MixtureKnobs, check_value
from synthnet.synthesis import policy_path
from synthnet.tasks.task import Task, check_same_data
from synthnet.train.snapshot import policy_of_run


def start_policy(config: Config, task: Task, settings: list[str]) -> Policy:
    """The policy a stage goes on from: policy_from, a policy file, a bundled policy's name, or a run directory (of a run that
    was stopped: its best policy so far). Raises: InputError where there is none, or where `settings` ask for another one."""
    if not config.policy_from:
        raise InputError(
            "this stage starts from a policy: pass policy_from=FILE, a run directory, or a bundled policy's name (distil also "
            "begins with a new one where its first updates see standardised logits, distil.standardised=N, or where the new "
            "one imagines examples, imagined=N)"
        )
    source = Path(config.policy_from)
    policy = load_policy(policy_of_run(source) if source.is_dir() else policy_path(config.policy_from))
    _check_same_policy(policy, config, settings)
    _meet(policy, task)
    for member in task.members:
        policy.layout(member.network)
        if member.arch not in policy.archs:
            policy.archs = [*policy.archs, member.arch]
    check_same_data(policy.record.get("data"), task, str(source))
    policy.record["data"] = task.data_key
    policy.drop_critic()  # it foresaw the policy as it was
    return policy.train()


def _check_same_policy(policy: Policy, config: Config, settings: list[str]) -> None:
    """Refuse settings given by name that say another policy than the one that a stage goes on from; what its mixtures of
    experts read at every forward is taken over."""
    mine, asked = asdict(policy.config), asdict(config.policy_config())
    for group in PACKAGES:
        if group in mine:  # files know nothing of settings younger than they are
            mine[group] = asdict(plugins(group)[mine[group]["name"]](**mine[group]))
    for name in (part.partition("=")[0] for part in settings):
        group, _, key = name.partition(".")
        if group not in SHAPING or name == "action":
            continue
        has, wants = (
            (each[group].get(key or "name") if isinstance(each[group], dict) else each[group]) for each in (mine, asked)
        )
        if group == "backbone" and key in policy.settings:
            policy.settings = {**policy.settings, key: check_value(name, wants, {"backbone": MixtureKnobs})}
        elif has != wants:
            raise InputError(
                f"{name} is {wants} here and {has} in the policy of policy_from, which keeps what it was made with: leave the "
                "setting out, or make a new policy with synthnet pairs"
            )


def fresh_policy(config: Config, task: Task) -> Policy:
    """A policy that knows nothing yet, for the architectures and the data of a task's members."""
    archs = list(dict.fromkeys(member.arch for member in task.members))
    policy = Policy.create(config.policy_config(), archs, config.seed)
    policy.record |= {"task": task.members[0].name, "data": task.data_key}
    _meet(policy, task)
    return policy


def _meet(policy: Policy, task: Task) -> None:
    """Let a policy that is told of data keep the statistics of the tasks that it is trained for."""
    if policy.reads_data:
        policy.data_sets |= {member.name: [round(x, 4) for x in member.statistics.tolist()] for member in task.members}
