"""The critic stage: a small head learns to foresee, from weights alone, what further steps would do. The policy stays as it
is."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from synthnet.engine import Network, quality, score
from synthnet.errors import InputError
from synthnet.policy import Policy, draw_prompt, lag, rollout
from synthnet.policy.steps import auto
from synthnet.runs import Setup
from synthnet.seeds import generator
from synthnet.settings import COUNT, check_settings, setting
from synthnet.tasks import Task
from synthnet.train.loop import LoopConfig, OptimConfig, Run
from synthnet.train.validation import Validation

SPLIT = "train+reward"


@dataclass
class CriticConfig:
    """Settings of `synthnet critic`; its images are those that rewards may come from."""

    hidden: int = setting(128, "width", (1, 1 << 20))
    nets: int = setting(32, "start weights an update", COUNT, hot=True)
    images: int = setting(512, "images an update", COUNT, hot=True)
    val_seeds: int = setting(64, "unseen start weights that are validated on", (2, 1e6))
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(updates=300, validate_every=50, checkpoint_every=100))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=1e-3, weight_decay=0.0, warmup=10, ema=0.98))


def train_critic(policy: Policy, task: Task, config: CriticConfig, setup: Setup) -> Path:
    """Run the stage on the task's members in turn; returns the path of the policy, critic included."""
    check_settings("critic", config)
    if any(member.data is None for member in task.members):
        raise InputError(f"a critic foresees what nets make of data, and {task.name} has rewards alone: choose K on its return")
    seed, place, members = setup.seed, setup.place, task.members
    policy = policy.with_critic(config.hidden, seed).to(place).requires_grad_(False)
    policy.critic.requires_grad_(True)
    steps = list(range(1, policy.config.k_max + 1))
    validation = Validation.of_task(task, config.val_seeds, steps, place)

    def validate(average: Policy, _: float) -> dict:
        accuracies, counts = [], []
        for member, start in zip(validation.members, validation.starts, strict=True):
            finals, taken = auto.synthesize(average, start, member.network)
            accuracies.append(score(member.network, finals, *validation.examples(member))[0].mean().item())
            counts.append(taken.double().mean().item())
        accuracy, steps_taken = (sum(values) / len(values) for values in (accuracies, counts))
        return {"score": accuracy, "auto_accuracy": accuracy, "auto_steps": steps_taken}

    with Run(setup, policy, config, validate, {"critic": config}) as run:
        for update in run.updates():
            member, net = members[update % len(members)], members[update % len(members)].network
            prompt = draw_prompt("critic", member, SPLIT, place, steps, config.nets, config.images, seed, update)
            visited = visit(policy, prompt.start, prompt.n_steps, net, generator(seed, "critic-visit", update))
            ahead = prospects(policy, visited, net, prompt.images, prompt.labels)
            loss = (policy.judge(visited / policy.scale(net), net) - lag(ahead)).square().mean()
            run.step(loss, {"best_gain": (ahead.amax(1) - ahead[:, 0]).mean().item()})
        return run.finish({"after": validate(run.best, 1.0)})


@torch.no_grad()
def visit(policy: Policy, start: Tensor, n_steps: int, net: Network, draw: torch.Generator) -> Tensor:
    """States [net weights] that the critic will meet: of each net one from W0 … WK, K steps planned, or one step at a time."""
    if torch.rand(1, generator=draw).item() < 0.5:
        states = [start, *rollout(policy, start, n_steps, net)]
    else:
        states = [start]
        for _ in range(n_steps):
            states.append(rollout(policy, states[-1], 1, net)[0])
    chosen = torch.randint(len(states), (len(start),), generator=draw).to(start.device)
    return torch.stack(states)[chosen, torch.arange(len(start), device=start.device)]


@torch.no_grad()
def prospects(policy: Policy, states: Tensor, net: Network, images: Tensor, labels: Tensor) -> Tensor:
    """Measured quality of each state now and after 1 … k_max more planned steps [net k_max + 1], float32."""
    found = []
    for k in range(policy.config.k_max + 1):
        ahead = rollout(policy, states, k, net)[-1] if k else states
        found.append(quality(*score(net, ahead, images, labels), net.objective.chance))
    return torch.stack(found, 1).float().to(states.device)
