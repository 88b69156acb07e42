"""The critic stage: a small head learns to foresee, from weights alone, what further steps would do. The policy stays as it
is."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from synthnet.device import choose_device
from synthnet.engine.network import Network, score
from synthnet.errors import at_least
from synthnet.grpo.rewards import quality
from synthnet.policy.critic import lag
from synthnet.policy.policy import Policy
from synthnet.policy.prompts import draw_prompt
from synthnet.policy.rollout import rollout, synthesize_auto
from synthnet.runs.lab import LabConfig
from synthnet.runs.live import Live
from synthnet.runs.tracking import open_run
from synthnet.seeds import generator
from synthnet.tasks.task import Task
from synthnet.train.loop import LoopConfig, OptimConfig, train
from synthnet.train.snapshot import finish
from synthnet.train.validation import Validation


@dataclass
class CriticConfig:
    """Settings of `synthnet critic`: hidden width, start states and images per update; images come from `split`."""

    hidden: int = 128
    nets: int = 32
    images: int = 512
    split: str = "train+reward"
    val_seeds: int = 64
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(updates=300, validate_every=50, checkpoint_every=100))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=1e-3, weight_decay=0.0, warmup=10, ema=0.98))


def train_critic(
    policy: Policy,
    task: Task,
    config: CriticConfig,
    run_dir: str | Path,
    config_yaml: str,
    seed: int,
    device: str = "auto",
    lab: LabConfig | None = None,
) -> Path:
    """Run the stage on the task's members in turn; returns the path of the policy, critic included."""
    live = Live("critic", {"critic": config}, lab)
    at_least(1, "critic", config, "hidden")
    at_least(2, "critic", config, "val_seeds")
    policy, place, members = policy.with_critic(config.hidden, seed), choose_device(device), task.members
    policy.to(place).requires_grad_(False)
    policy.critic.requires_grad_(True)
    steps = list(range(1, policy.config.k_max + 1))
    validation = Validation.of_task(task, config.val_seeds, steps, place)

    def step(update: int, learner: Policy) -> Iterator[tuple[Tensor, dict]]:
        net = members[update % len(members)].network
        prompt = draw_prompt(
            "critic", members[update % len(members)], config.split, place, steps, config.nets, config.images, seed, update
        )
        visited = visit(learner, prompt.start, prompt.n_steps, net, generator(seed, "critic-visit", update))
        ahead = prospects(learner, visited, net, prompt.images, prompt.labels)
        loss = (learner.judge(visited / learner.scale(net), net) - lag(ahead)).square().mean()
        yield loss, {"best_gain": (ahead.amax(1) - ahead[:, 0]).mean().item()}

    def validate(average: Policy, _: float) -> dict:
        accuracies, counts = [], []
        for member, start in zip(validation.members, validation.starts, strict=True):
            finals, taken = synthesize_auto(average, start, member.network)
            accuracies.append(score(member.network, finals, *validation.examples(member))[0].mean().item())
            counts.append(taken.double().mean().item())
        accuracy, steps_taken = (sum(values) / len(values) for values in (accuracies, counts))
        return {"score": accuracy, "auto_accuracy": accuracy, "auto_steps": steps_taken}

    with open_run(run_dir, config_yaml, lab) as run:
        best = train(run, f"critic {task.name}", policy, config, step, validate, live)
        return finish(run, best, "critic", {"seed": seed, "after": validate(best, 1.0)})


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
        found.append(quality(*score(net, ahead, images, labels), net.module.n_classes))
    return torch.stack(found, 1).float().to(states.device)
