"""How one synth step grows with the network: vision Transformers of 6,000 to 89M weights under one small random policy, each
in a process of its own, edges held or streamed as a memory budget says; one JSON file and one table.

python benchmarks/growth.py [--memory 8G | --stream] [--threads 2] -o benchmarks/results/growth.json
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

from synthnet.console import table
from synthnet.engine.network import network_of
from synthnet.files import write_atomic
from synthnet.nets.arch import Arch
from synthnet.nets.start import draw_init
from synthnet.policy.policy import Policy, PolicyConfig
from synthnet.policy.rollout import rollout
from synthnet.synthesis import held_bytes, parse_size

SIZES = {  # dim, blocks, heads
    "6k": (16, 2, 2),
    "80k": (48, 4, 2),
    "1M": (128, 8, 2),
    "5M": (256, 10, 4),
    "20M": (480, 11, 8),
    "86M": (960, 12, 16),
}
BACKBONE = {"name": "perceiver_io", "dim": 32, "rounds": 2, "edge_dim": 16, "latents": 8}


def measure(name: str, memory: str | None, threads: int) -> dict:
    """One network: seconds for its tracing and for a step, and the peak memory of the process. Without a budget, edges are
    streamed whatever their number."""
    torch.set_num_threads(threads)
    dim, blocks, heads = SIZES[name]
    arch = Arch.of("vit", side=32, patch=8, dim=dim, blocks=blocks, heads=heads)
    began, net = time.monotonic(), network_of(arch)
    assert net.symmetry.groups
    traced = time.monotonic() - began
    policy = Policy.create(PolicyConfig({"name": "unit"}, BACKBONE), [arch], 0).eval()
    layout, start = policy.layout(net), draw_init(net.spec, torch.Generator().manual_seed(0))[None]
    policy.trunk.held_bytes = held_bytes(net.spec.n_weights, parse_size(memory)) if memory else 0
    n_edges = sum(block.index.shape[0] * block.index.shape[1] for block in layout.edges)
    with torch.no_grad():
        began = time.monotonic()
        final = rollout(policy, start, 1, net)[0]
        seconds = time.monotonic() - began
    state_bytes = n_edges * BACKBONE["edge_dim"] * 12
    return {
        "weights": net.spec.n_weights,
        "edges": n_edges,
        "unit_tokens": layout.n_tokens,
        "streamed": state_bytes > policy.trunk.held_bytes,
        "tracing_s": traced,
        "step_s": seconds,
        "ns_per_edge": 1e9 * seconds / n_edges,
        "finite": bool(torch.isfinite(final).all()),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory", default="8G")
    parser.add_argument("--stream", action="store_true", help="stream edges at every size")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", choices=SIZES)
    parser.add_argument("-o", "--out")
    options = parser.parse_args()
    memory = None if options.stream else options.memory
    if options.one:
        print(json.dumps(measure(options.one, memory, options.threads)))
        return
    report = {"memory": memory, "threads": options.threads, "policy": BACKBONE, "nets": {}}
    for name in SIZES:
        budget = ["--stream"] if options.stream else ["--memory", options.memory]
        own = [sys.executable, __file__, "--one", name, *budget, "--threads", str(options.threads)]
        report["nets"][name] = json.loads(
            subprocess.run(own, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        )
        print(name, report["nets"][name], flush=True)
        write_atomic(options.out, json.dumps(report, indent=1) + "\n")
    rows = [
        [
            name,
            f"{row['weights']:,}",
            f"{row['edges']:,}",
            "streamed" if row["streamed"] else "held",
            f"{row['step_s']:.1f} s",
            f"{row['ns_per_edge']:.0f} ns",
            f"{row['peak_gib']:.1f} GiB",
        ]
        for name, row in report["nets"].items()
    ]
    table(
        f"one synth step, {'edges streamed' if options.stream else 'within ' + options.memory}",
        ["vit", "weights", "edges", "edges are", "step", "per edge", "peak"],
        rows,
    )


if __name__ == "__main__":
    main()
