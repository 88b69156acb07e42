"""docs/grpo.png: how well each estimator agrees with backpropagation, and what rewards alone reached, from committed results.

python benchmarks/grpo_figure.py
"""

import json
from pathlib import Path

import numpy as np

from synthnet.console import figure_library

RESULTS, OUT = Path(__file__).parent / "results", Path(__file__).parents[1] / "docs" / "grpo.png"
KINDS = {"whole nets": "tab:gray", "by example": "tab:blue", "backpropagation": "tab:orange"}
RUNS = {
    "digits-mlp": ("grpo-digits-gain", "grpo-digits-mlp-seeds"),
    "mnist5k-mlp": ("grpo-mnist5k-mlp-gain", "grpo-mnist5k-mlp-seeds"),
}
BOTH = "twins on train + reward"


def reached(whole: str, example: str) -> tuple[float, dict[str, list[float]], dict[str, float]]:
    """Accuracy at K = 2 of the pairs policy, of each run by kind of rollout, and of twins, in %."""
    first, second = (json.loads((RESULTS / f"{name}.json").read_text()) for name in (whole, example))
    of_nets = {name: 100 * row["steps"]["2"]["accuracy"]["mean"] for name, row in first["policies"].items()}
    runs = {
        "whole nets": [value for name, value in of_nets.items() if name.startswith("GRPO")],
        "by example": [100 * row["steps"]["2"]["mean"] for name, row in second["policies"].items() if name.startswith("grpo-")],
    }
    twins = {name: 100 * second[name]["mean"] for name in (BOTH, f"strong {BOTH}")}
    return of_nets["before"], runs, twins


def main() -> None:
    _, plt = figure_library()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", width_ratios=(3, 2))
    cosines = json.loads((RESULTS / "estimators.json").read_text())
    for place, (kind, colour) in enumerate(KINDS.items()):
        best = [max(row["direction"] for name, row in rows.items() if name.startswith(kind)) for rows in cosines.values()]
        left.bar(np.arange(len(best)) + 0.27 * (place - 1), best, 0.27, label=kind, color=colour)
    left.set_xticks(range(len(cosines)), list(cosines), fontsize=8)
    left.set_ylabel("cosine with backpropagation's gradient")
    left.set_title("One update, eight start states (the best way of each kind)", fontsize=9)
    left.legend(frameon=False, fontsize=8)
    for place, files in enumerate(RUNS.values()):
        before, runs, twins = reached(*files)
        for (kind, values), side in zip(runs.items(), (-0.2, 0.2), strict=True):
            first = None if place else kind
            right.plot([place + side] * len(values), values, "o", color=KINDS[kind], ms=7, alpha=0.8, label=first)
        right.hlines(before, place - 0.4, place + 0.4, color="black", ls=":", lw=1, label=None if place else "pairs policy")
        for (name, value), style in zip(twins.items(), ("-", "--"), strict=True):
            right.hlines(value, place - 0.4, place + 0.4, color="tab:green", ls=style, lw=1, label=None if place else name)
    right.set_xticks(range(len(RUNS)), list(RUNS), fontsize=8)
    right.set_xlim(-0.6, len(RUNS) - 0.4)
    right.set_ylabel("test accuracy at K = 2, %")
    right.set_title("Rewards alone from a pairs policy, each run", fontsize=9)
    right.legend(frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=(0, 0.09))
    figure.savefig(OUT, dpi=130)


if __name__ == "__main__":
    main()
