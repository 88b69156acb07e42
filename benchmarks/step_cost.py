"""What one synth step costs on a large network: ResNet-18 (11.2M weights) under a random policy, in a process of its own.

python benchmarks/step_cost.py [--threads 2] -o benchmarks/results/step-resnet18.json
"""

import argparse
import json
import resource
import statistics
import time

import torch

from synthnet.engine.network import network_of
from synthnet.files import write_atomic
from synthnet.nets.arch import Arch
from synthnet.nets.start import draw_init
from synthnet.policy.policy import Policy, PolicyConfig
from synthnet.policy.rollout import rollout

ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    began, net = time.monotonic(), network_of(Arch.of("resnet18"))
    groups = dict(net.symmetry.groups)
    traced = time.monotonic() - began
    backbone = {"name": "perceiver_io", "dim": 128, "rounds": 3, "experts": 2}
    policy = Policy.create(PolicyConfig({"name": "unit"}, backbone), [Arch.of("resnet18")], 0).eval()
    start = draw_init(net.spec, torch.Generator().manual_seed(0))[None]
    seconds = []
    with torch.no_grad():
        for _ in range(ROUNDS):
            began = time.monotonic()
            rollout(policy, start, 1, net)
            seconds.append(time.monotonic() - began)
    layout = policy.layout(net)
    report = {
        "weights": net.spec.n_weights,
        "policy_parameters": policy.n_parameters,
        "unit_tokens": layout.n_tokens,
        "edge_tokens": sum(edge.index.shape[0] * edge.index.shape[1] for edge in layout.edges),
        "unit_groups": groups,
        "threads": options.threads,
        "tracing_s": round(traced, 1),
        "step_s": [round(value, 2) for value in seconds],
        "step_median_s": round(statistics.median(seconds), 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    write_atomic(options.out, json.dumps(report, indent=1) + "\n")
    print(report)


if __name__ == "__main__":
    main()
