"""How well each estimator of GRPO agrees with backpropagation through the target, and what it costs.

    python benchmarks/estimators.py -o benchmarks/results/estimators.json

From committed policies, eight start states an update, K = 1, one core; the reward is bounded loss. Direction: its gradient with
respect to the policy, through the net at its mean weights, summed over twelve updates. Cosines are means over six others, of
which each estimator has the same images and start weights.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from synthnet.bundled import load_policy
from synthnet.files import write_atomic
from synthnet.grpo import GrpoConfig, RewardConfig
from synthnet.grpo.example import Examples
from synthnet.grpo.experience import Estimator, Nets
from synthnet.grpo.felt import USES
from synthnet.grpo.loop import most_tokens
from synthnet.grpo.noise import noise_shares, set_sigma
from synthnet.policy import draw_prompt, rollout
from synthnet.progress import Bar
from synthnet.tasks import build_task

POLICIES = {
    "digits-mlp": ("benchmarks/policies/pairs-digits-256.safetensors", 0.1),
    "mnist5k-mlp": ("benchmarks/policies/pairs-mnist5k-mlp.safetensors", 0.07),
    "mnist5k-cnn": ("benchmarks/policies/pairs-mnist5k-cnn.safetensors", 0.07),
    "digits-resnet": ("benchmarks/policies/distil-digits-resnet.safetensors", 0.05),
    "digits-vit": ("digits-vit", 0.05),
}
PROMPTS, IMAGES, DIRECTION, UPDATES = 8, 256, 12, 6
REWARD = RewardConfig(accuracy=0.0, bounded_loss=1.0, batch=IMAGES)


class Pathwise:
    """The reward's gradient through the net at its mean weights, of one update."""

    def __init__(self, policy, task, config, update: int):
        self.policy, self.task = policy, task
        self.prompt = draw_prompt("grpo", task, REWARD.split, policy.device, config.steps, PROMPTS, IMAGES, 0, update)

    def loss(self, rows: slice = slice(None)) -> Tensor:
        n_steps, start, images, labels, _ = self.prompt
        final = rollout(self.policy, start[rows], n_steps, self.task.network)[-1]
        logits = self.task.network.logits(final, images)
        chance = self.task.objective.chance
        loss = F.cross_entropy(logits.movedim(-1, 1), labels.expand(logits.shape[:2]), reduction="none")
        return (loss.clamp(max=2 * chance) / chance).mean()


def gradient_of(policy, loss: Tensor) -> Tensor:
    wanted = [p for p in policy.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    policy.auxiliary_loss()  # these forwards are no part of an update
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(wanted, found, strict=True)])


def estimators(policy, task, config) -> dict[str, Callable[[int], tuple[Callable[[], Tensor], Callable[[], float]]]]:
    """Name -> of an update: its loss, and the cosine between its halves."""

    def examples(update: int, **changes):
        made = Examples(policy, [task], [1.0], replace(config, **changes), REWARD, (), 0, update)
        return lambda: made.loss()[0], made.cosine

    def nets(update: int):
        longest = most_tokens(policy, [task], config)
        made = Nets(policy, [task], [], config, REWARD, (), 0, update, False, longest, Estimator())
        return lambda: made.loss(None)[0], made.cosine

    def pathwise(update: int):
        made = Pathwise(policy, task, config, update)

        def halves() -> float:
            one, other = (gradient_of(policy, made.loss(slice(half, None, 2))) for half in (0, 1))
            return F.cosine_similarity(one, other, dim=0).item()

        return made.loss, halves

    by_example = {f"by example, {uses}": lambda update, uses=uses: examples(update, uses=uses) for uses in USES}
    if task.network.chain is not None:
        by_example = {"by example": by_example["by example, auto"]}
    return {"whole nets": nets, **by_example, "backpropagation": pathwise}


def measure(name: str, path: str, sigma: float) -> dict[str, dict[str, float]]:
    policy, task = load_policy(path).train(), build_task(name)
    config = GrpoConfig(prompts=PROMPTS, steps=[1], noisy_layers="all", sigma=sigma, sigma_by="role", num_generations=4)
    set_sigma(policy, sigma, noise_shares(policy, [task], config, REWARD, 0))
    direction = sum(gradient_of(policy, Pathwise(policy, task, config, 1000 + n).loss()) for n in range(DIRECTION))
    rows = {}
    for kind, of_update in estimators(policy, task, config).items():
        along, halves, seconds = [], [], []
        for update in range(UPDATES):
            began = time.perf_counter()
            loss, cosine = of_update(update)
            gradient = gradient_of(policy, loss())
            seconds.append(time.perf_counter() - began)
            along.append(F.cosine_similarity(gradient, direction, dim=0).item())
            halves.append(cosine())
        mean = lambda values: sum(values) / len(values)  # noqa: E731
        rows[kind] = {"direction": mean(along), "halves": mean(halves), "seconds": sorted(seconds)[len(seconds) // 2]}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--tasks", nargs="+", default=list(POLICIES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    with Bar("estimators", len(options.tasks)) as bar:
        for name in options.tasks:
            results[name] = measure(name, *POLICIES[name])
            for kind, row in results[name].items():
                print(f"{name:14} {kind:20} {row['halves']:+.3f} {row['direction']:+.3f} {row['seconds']:.2f} s", flush=True)
            bar.advance()
    write_atomic(options.out, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
