"""A sweep to read and to look at: one table, and one figure with a line for each trial through the axes of its settings."""

import math
from pathlib import Path

from synthnet.console import figure_library, table


def print_sweep(results: dict) -> None:
    """The trials, best first."""
    metric, trials = results["metric"], results["trials"]
    names = list(dict.fromkeys(name for row in trials for name in row["settings"]))
    rows = []
    for row in trials:
        value = "–" if row[metric] is None else f"{row[metric]:.4f}"
        rows.append(
            [str(row["trial"]), value, *(str(row["settings"].get(name, "")) for name in names), row["error"] or row["state"]]
        )
    table(f"sweep: best {metric} on val", ["trial", metric, *names, "state"], rows)


def draw_sweep(results: dict, path: Path) -> Path:
    """Parallel coordinates: an axis for each setting, the metric last; colour by metric, failed trials grey and dashed."""
    _, plt = figure_library()
    metric, trials = results["metric"], results["trials"]
    names = list(dict.fromkeys(name for row in trials for name in row["settings"]))
    axes_of = {name: _axis([row["settings"].get(name) for row in trials]) for name in names}
    values = [row[metric] for row in trials if row[metric] is not None]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    span = (high - low) or 1.0
    figure, axes = plt.subplots(figsize=(2.6 * (len(names) + 1) + 1, 4.8), layout="constrained")
    for row in sorted(trials, key=lambda row: (row[metric] is not None, row[metric] or 0.0)):
        heights = [axes_of[name][0](row["settings"].get(name)) for name in names]
        done = row[metric] is not None
        share = (row[metric] - low) / span if done else None
        style = {"color": plt.cm.viridis(share), "lw": 1.2 + 1.6 * share} if done else {"color": "0.7", "ls": "--", "lw": 1}
        axes.plot(range(len(heights) + done), [*heights, *([share] if done else [])], marker="o", ms=4, alpha=0.85, **style)
    for place, name in enumerate(names):
        axes.axvline(place, color="0.85", lw=1, zorder=0)
        for height, label in axes_of[name][1]:
            axes.annotate(label, (place, height), (6, 0), textcoords="offset points", fontsize=8, va="center", color="0.25")
    axes.axvline(len(names), color="0.85", lw=1, zorder=0)
    for height in (0.0, 0.5, 1.0):
        text = f"{low + span * height:.4f}"
        axes.annotate(text, (len(names), height), (6, 0), textcoords="offset points", fontsize=8, va="center")
    axes.set_xticks(range(len(names) + 1), [*names, metric])
    axes.set_yticks([])
    axes.set_xlim(-0.2, len(names) + 0.45)
    axes.set_title(f"{len(trials)} trials, coloured by {metric} on val")
    for side in axes.spines.values():
        side.set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _axis(values: list) -> tuple:
    """Where a value stands between 0 and 1, and the marks to write beside the axis: numbers by size (on a log scale where they
    span more than a factor of 20), anything else evenly in order of appearance."""
    known = [value for value in values if value is not None]
    plain = [value for value in known if isinstance(value, int | float) and not isinstance(value, bool)]
    if known and len(plain) == len(known) and len(set(plain)) > 1:
        low, high = min(plain), max(plain)
        scale = math.log if low > 0 and high / low > 20 else float
        place = lambda value: 0.5 if value is None else (scale(value) - scale(low)) / (scale(high) - scale(low))  # noqa: E731
        marks = sorted(set(plain)) if len(set(plain)) <= 6 else [low, high]
        return place, [(place(value), f"{value:g}") for value in marks]
    order = list(dict.fromkeys(map(str, values)))
    place = lambda value: (order.index(str(value)) + 0.5) / len(order)  # noqa: E731
    return place, [(place(text), text) for text in order]
