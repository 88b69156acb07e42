"""What an update of GRPO by example spends its time on, one core: policy, target, the rest; and the share of the matmul rate.

    python benchmarks/update_cost.py -o benchmarks/results/update-cost.json

Medians of alternating repeats, settings as in the committed runs (16 start states, 4 draws, 512 images), with noise in all
layers; and the whole with noise in one layer at a time, means over as many updates. The matmul rate is
that of square float32 matrices of 512, measured in between. Floating-point operations are counted by torch over the update.
"""

import argparse
import json
import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from synthnet.bundled import load_policy
from synthnet.console import table
from synthnet.files import write_atomic
from synthnet.grpo import GrpoConfig, RewardConfig
from synthnet.grpo.example import Examples, sample_examples
from synthnet.grpo.felt import noisy_layers
from synthnet.grpo.noise import noise_shares, set_sigma
from synthnet.nets import shortfall
from synthnet.policy import draw_prompt, rollout
from synthnet.seeds import generator
from synthnet.tasks import build_task
from synthnet.train.optimizer import Optimizer

TARGETS = {"digits-mlp": "digits-mlp", "mnist5k-mlp": "mnist5k-mlp", "mnist5k-cnn": "mnist5k-cnn-family"}
REPEATS, SIDE = 12, 512
PARTS = ("prompt", "policy, forward", "target", "score", "apart", "policy, backward", "optimiser")


def matmul_rate() -> float:
    """Floating-point operations a second of one square product."""
    one, other = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    began = time.perf_counter()
    for _ in range(20):
        one @ other
    return 20 * 2 * SIDE**3 / (time.perf_counter() - began)


def update(
    policy, task, config: GrpoConfig, reward: RewardConfig, number: int, optimizer: Optimizer, which: str = "all"
) -> dict[str, float]:
    """Seconds of each part of one update, as `Examples` does it."""
    times, last = {}, time.perf_counter()

    def tick(part: str) -> None:
        nonlocal last
        now = time.perf_counter()
        times[part], last = now - last, now

    net, steps = task.network, [2]
    prompt = draw_prompt("grpo", task, reward.split, policy.device, steps, config.prompts, reward.batch, 0, number)
    tick("prompt")
    final = rollout(policy, prompt.start, 2, net)[-1]
    tick("policy, forward")
    layers = noisy_layers(net, which, generator(0, "cost-layers", number))
    draw = lambda n: generator(0, "cost", number, n)  # noqa: E731
    batch = sample_examples(policy, task, prompt, final, config, reward, (), draw, layers)
    tick("target")
    gradients, _ = batch.gradient(final, config)
    tick("score")
    lack = shortfall(net.alignment, final, 1.0)
    tick("apart")
    optimizer.zero_grad()
    (lack - (gradients * final).sum() / len(final)).backward()
    tick("policy, backward")
    optimizer.step()
    tick("optimiser")
    return times


def measure(name: str, policy_name: str) -> dict:
    task, policy = build_task(name), load_policy(policy_name).train()
    config, reward = GrpoConfig(prompts=16, sigma_by="role", sigma=0.05, steps=[2], apart=2.0), RewardConfig(batch=512)
    set_sigma(policy, config.sigma, noise_shares(policy, [task], config, reward, 0))
    optimizer = Optimizer(policy)
    optimizer.set(1e-6, 0.0)
    with FlopCounterMode(display=False) as counter:
        whole = Examples(policy, [task], [1.0], config, reward, (), 0, 0)
        whole.loss()[0].backward()
    rows, rates, single = [], [], []
    for number in range(REPEATS + 2):
        rates.append(matmul_rate())
        rows.append(update(policy, task, config, reward, number, optimizer))
        single.append(sum(update(policy, task, config, reward, number, optimizer, "one").values()))
    seconds = {part: statistics.median(row[part] for row in rows[2:]) for part in PARTS}
    busy = sum(seconds[part] for part in PARTS if part.startswith(("policy", "target", "score")))
    rate = statistics.median(rates)
    return {
        "policy": policy_name,
        "seconds": seconds,
        "total": sum(seconds.values()),
        "total_one_layer": statistics.mean(single[2:]),
        "gflop": counter.get_total_flops() / 1e9,
        "matmul_gflops": rate / 1e9,
        "share_of_matmul_rate": counter.get_total_flops() / busy / rate,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: measure(name, policy) for name, policy in TARGETS.items()}
    write_atomic(options.out, json.dumps(found, indent=1) + "\n")
    rows = [
        [name, *(f"{1e3 * row['seconds'][part]:.0f}" for part in PARTS), f"{1e3 * row['total']:.0f}",
         f"{1e3 * row['total_one_layer']:.0f}", f"{100 * row['share_of_matmul_rate']:.0f} %"]
        for name, row in found.items()
    ]  # fmt: skip
    table("an update of GRPO by example, ms", ["target", *PARTS, "total", "one layer", "of the matmul rate"], rows)


if __name__ == "__main__":
    main()
