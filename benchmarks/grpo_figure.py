"""docs/grpo.png: how well each estimator agrees with backpropagation, and what it reaches in equal time, from results.

python benchmarks/grpo_figure.py
"""

import json
from pathlib import Path

import numpy as np

from synthnet.console import figure_library

RESULTS, OUT = Path(__file__).parent / "results", Path(__file__).parents[1] / "docs" / "grpo.png"
KINDS = {"whole nets": "tab:gray", "by example": "tab:blue", "backpropagation": "tab:orange"}
ROWS = {"whole nets": "whole nets, 64 each", "by example": "by example, chosen", "backpropagation": "backpropagation (distil)"}


def main() -> None:
    _, plt = figure_library()
    cosines = json.loads((RESULTS / "estimators.json").read_text())
    reached = json.loads((RESULTS / "example-seconds.json").read_text())
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", width_ratios=(3, 2))
    for place, (kind, colour) in enumerate(KINDS.items()):
        best = [max(row["direction"] for name, row in rows.items() if name.startswith(kind)) for rows in cosines.values()]
        left.bar(np.arange(len(best)) + 0.27 * (place - 1), best, 0.27, label=kind, color=colour)
        for task_place, rows in enumerate(reached.values()):
            row = rows[ROWS[kind]]
            value = 100 * row["best"]["accuracy_k2"]
            right.bar(task_place + 0.27 * (place - 1), value, 0.27, color=colour)
            right.text(task_place + 0.27 * (place - 1), value + 0.4, f"{value:.1f}", ha="center", fontsize=8)
    for place, rows in enumerate(reached.values()):
        before = 100 * next(iter(rows.values()))["before"]["accuracy_k2"]
        right.hlines(before, place - 0.42, place + 0.42, color="black", ls=":", lw=1, label=None if place else "before")
    left.set_xticks(range(len(cosines)), list(cosines), fontsize=8)
    left.set_ylabel("cosine with backpropagation's gradient")
    left.set_title("One update, eight start states (the best kind of each)", fontsize=9)
    left.legend(frameon=False, fontsize=8)
    right.set_xticks(range(len(reached)), list(reached), fontsize=8)
    right.set_ylabel("val accuracy at K = 2, %")
    right.set_ylim(bottom=65)
    right.set_title("From a pairs policy, a minute of one core each", fontsize=9)
    right.legend(frameon=False, fontsize=8, loc="lower left")
    figure.savefig(OUT, dpi=130)


if __name__ == "__main__":
    main()
