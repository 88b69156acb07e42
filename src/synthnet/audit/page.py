"""The audit as one page: verdicts, figures and tables in a single HTML file that needs no network and no script."""

import io
from collections.abc import Mapping
from html import escape

import torch

from synthnet.audit.audit import OURS
from synthnet.audit.measures import Measured
from synthnet.audit.sequence import WHOLE
from synthnet.console import figure_library, percent

COLOURS = {"pass": "#1a7f37", "fail": "#b42318", "not applicable": "#667085"}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2939; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #e4e7ec; padding: .3rem .5rem; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; } table.wide td:not(:first-child) { white-space: nowrap; }
figure { margin: 1rem 0; } svg { max-width: 100%; height: auto; } figcaption { color: #475467; font-size: .9em; }
"""


def page(report: dict, sets: Mapping[str, Measured]) -> str:
    """The page as HTML. Raises: InputError where matplotlib is missing."""
    title = f"Audit of {report['policy']} on {report['task']}"
    about = (
        f"{report['arch']}; judged at K = {report['judged_steps']} on {report['heldout_nets']} unseen seeds against "
        f"{report['training_nets']} training nets, {report['n_images']} test images, split seed {report['split_seed']}."
    )
    drawn = "".join(
        f"<h2>{escape(head)}</h2><figure>{svg}<figcaption>{escape(text)}</figcaption></figure>"
        for head, svg, text in _figures(report, sets)
    )
    parts = [
        f"<h1>{escape(title)}</h1><p>{escape(about)}</p>",
        "<h2>Verdicts</h2>",
        _table(["criterion", "verdict", "value", "bar", "95 % interval", "what was compared"], verdict_rows(report), "text"),
        drawn,
        "<h2>All sets on the same axes</h2>",
        _table(SET_COLUMNS, set_rows(report)),
        "<h2>Identity</h2>",
        _table(["measure", "outputs", "SGD nets", "ratio"], identity_rows(report)),
        "<p>What each measure means, and what fools it: docs/metrics.md.</p>",
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en">{head}{"".join(parts)}</html>\n'


SET_COLUMNS = [
    "nets",
    "accuracy, mean ± sd",
    "worst",
    "max error-IoU",
    "nearest, aligned",
    "ZU",
    "nearest, raw",
    "novel & performant, 1/2/4/6x",
]


def set_rows(report: dict) -> list[list[str]]:
    """One row for each set of nets, for the page and the terminal."""
    rows = []
    for name, row in report["sets"].items():
        shares = "/".join(f"{100 * share:.0f}" for share in row["novel_and_performant"].values())
        accuracy = f"{percent(row['accuracy']['mean'])} ± {100 * row['accuracy']['sd']:.2f}"
        distances = [f"{row['nearest_aligned']['mean']:.3f}", f"{row['zu_aligned']:+.1f}", f"{row['nearest_raw']['mean']:.2f}"]
        worst, iou = percent(row["accuracy"]["min"]), f"{row['max_error_iou']['mean']:.3f}"
        rows.append([name, accuracy, worst, iou, *distances, f"{shares} %"])
    return rows


def verdict_rows(report: dict) -> list[list[str]]:
    """Criterion, verdict, value, bar and interval of each verdict."""
    rows = []
    for v in report["verdicts"]:
        value = "" if v["value"] is None else f"{v['value']:.4g}"
        between = "" if v["interval"] is None else f"{v['interval'][0]:.4g} to {v['interval'][1]:.4g}"
        rows.append([v["criterion"], v["verdict"], value, v["bar"], between, v["reason"]])
    return rows


def identity_rows(report: dict) -> list[list[str]]:
    """The identity measures, then the diagnostics that judge nothing."""
    identity, rows = report["identity"], []
    for name in ("aligned_distance", "disagreement", "ensemble_gain", "error_iou"):
        row = identity[name]
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        rows.append([f"{name.replace('_', ' ')} between seeds", f"{row['value']:.4f}", f"{row['reference']:.4f}", ratio])
    twin = identity["own_twin_by_displacement"]
    rows.append(["own twin nearest by displacement (diagnostic)", percent(twin["own_twin_first"], 0), "", ""])
    cosines = f"{twin['cosine_own']:.2f} / {twin['cosine_others']:.2f}"
    rows.append(["cosine of displacements, own / others (diagnostic)", cosines, "", ""])
    raw = percent(identity["start_weights_nearest_to_own_twin_raw"], 0)
    rows.append(["start weights nearest to their own twin by raw distance: why that is no evidence", raw, "", ""])
    for name, row in report["connectivity"].items():
        rows.append([f"loss barrier, {name} (nats)", f"{row['barrier']['mean']:.3f} ± {row['barrier']['sd']:.3f}", "", ""])
    return [*rows, *_basin_rows(report.get("basins", {}))]


def _basin_rows(found: dict) -> list[list[str]]:
    """What lies between outputs of different seeds, how sure they are; none in reports older than these measures."""
    texts = {
        "between": "points of accuracy lost half way between two aligned nets (SGD nets in their own batch order)",
        "merged": "points lost by the mean of ten aligned nets",
        "calibration_error": "calibration error",
    }
    rows = []
    for key, text in ((key, text) for key, text in texts.items() if key in found):
        share = f"{found[key]['share']:.2f}" if "share" in found[key] else ""
        rows.append([text, f"{found[key]['outputs']:.3f}", f"{found[key]['sgd']:.3f}", share])
    sure = found.get("confidence", {"outputs": {}})
    rows += [
        [f"confidence in {name} images", f"{value:.3f}", f"{sure['sgd'][name]:.3f}", ""]
        for name, value in sure["outputs"].items()
    ]
    return rows


def _table(columns: list[str], rows: list[list[str]], style: str = "wide") -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    cell = lambda text: f'<b style="color:{COLOURS[text]}">{text}</b>' if text in COLOURS else escape(text)  # noqa: E731
    body = "".join("<tr>" + "".join(f"<td>{cell(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f'<table class="{style}"><tr>{head}</tr>{body}</table>'


def _figures(report: dict, sets: Mapping[str, Measured]) -> list[tuple[str, str, str]]:
    """(heading, SVG, caption) of each figure."""
    mpl, plt = figure_library()
    with mpl.rc_context({"svg.hashsalt": "synthnet", "font.size": 9}):
        return [
            (
                "Accuracy by synth step",
                _svg(plt, _draw_steps, report),
                "Mean test accuracy of the outputs after each synth step, and of conventional training after each epoch.",
            ),
            (
                "Accuracy against novelty",
                _svg(plt, _draw_scatter, report, sets),
                "Each point is one net; left is more novel. A generator that learned a rule lies with the held-out SGD nets, "
                "not below or to the right of nets made from training checkpoints.",
            ),
            (
                "Distance to the nearest training net",
                _svg(plt, _draw_distances, report, sets),
                "After balancing, scaling to unit norm and alignment. Mass to the left of the held-out SGD nets means copying.",
            ),
            (
                "The sequence beside real training states",
                _svg(plt, _draw_sequence, report),
                "Mean L2 distance of each generated state to the states of the run from the same start. Nearness is no goal.",
            ),
            (
                "Straight lines between nets",
                _svg(plt, _draw_paths, report),
                "Mean test loss along the line; a hill means that the two ends lie in different basins.",
            ),
        ]


def _svg(plt, draw, *arguments) -> str:
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    draw(axes, *arguments)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _draw_steps(axes, report: dict) -> None:
    epochs, curve = report["sgd_epochs"], report["sgd_accuracy_by_epoch"]
    steps = [0, *map(int, report["accuracy_by_step"])]
    reached = [curve[0], *(row["mean"] for row in report["accuracy_by_step"].values())]
    axes.plot(epochs, [100 * a for a in curve], "o-", color="tab:gray", label="SGD, by epoch")
    axes.plot(steps, [100 * a for a in reached], "o-", color="tab:orange", label="outputs, by synth step")
    axes.axhline(100 * curve[-1], color="tab:gray", ls=":", lw=1)
    axes.set_xscale("symlog", linthresh=4)
    axes.set_xticks(sorted({*epochs, *steps}), sorted({*epochs, *steps}))
    axes.set(xlabel="synth steps / SGD epochs", ylabel="test accuracy (%)")
    axes.legend(frameon=False, loc="lower right")


def _draw_scatter(axes, report: dict, sets: Mapping[str, Measured]) -> None:
    floor = 100 * sets["held-out SGD nets"].accuracy.min().item() - 8
    for number, (name, part) in enumerate(sets.items()):
        accuracy = 100 * part.accuracy[:100]
        seen = accuracy >= floor
        if not seen.any():
            continue  # the table has them; on this scale they would hide everything else
        marker = {OURS: "o", "held-out SGD nets": "s"}.get(name, "x+v^<>d*"[number % 8])
        size, order = (22, 5) if name in (OURS, "held-out SGD nets") else (14, 2)
        colour = {OURS: "tab:orange", "held-out SGD nets": "black"}.get(name)
        axes.scatter(
            part.max_iou[:100][seen],
            accuracy[seen],
            size,
            marker=marker,
            alpha=0.6,
            lw=0.8,
            label=name,
            zorder=order,
            color=colour,
        )
    axes.set(xlabel="max error-IoU to a training net", ylabel="test accuracy (%)")
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_distances(axes, report: dict, sets: Mapping[str, Measured]) -> None:
    names = {
        OURS: "tab:orange",
        "held-out SGD nets": "black",
        "aligned interpolation": "tab:blue",
        "training net + noise 0.1": "tab:red",
    }
    shown = {name: sets[name].aligned for name in names if name in sets}
    top = max(values.max().item() for values in shown.values())
    edges = torch.linspace(0, 1.02 * top, 41).tolist()
    for name, values in shown.items():
        axes.hist(values.tolist(), edges, density=True, histtype="stepfilled", alpha=0.35, color=names[name], label=name)
    for factor in (1, 2, 4, 6):
        if factor * report["spread"] <= top:
            axes.axvline(factor * report["spread"], color="tab:gray", ls=":", lw=1)
            axes.annotate(
                f"{factor}x spread", (factor * report["spread"], axes.get_ylim()[1]), fontsize=7, rotation=90, va="top"
            )
    axes.set(xlabel="aligned distance to the nearest training net", ylabel="density")
    axes.legend(frameon=False)


def _draw_sequence(axes, report: dict) -> None:
    epochs = report["sgd_epochs"]
    for step, row in enumerate(report["sequence"]["layers"][WHOLE]["distance"], 1):
        axes.plot(range(len(epochs)), row, "o-", ms=3, label=f"W{step}")
    axes.set_xticks(range(len(epochs)), epochs)
    axes.set(xlabel="state of the real run (SGD epochs)", ylabel="L2 distance")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _draw_paths(axes, report: dict) -> None:
    for name, row in report["connectivity"].items():
        losses = row["losses"]
        axes.plot([i / (len(losses) - 1) for i in range(len(losses))], losses, "o-", ms=3, label=name)
    axes.set(xlabel="share of the way", ylabel="test loss (nats)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
