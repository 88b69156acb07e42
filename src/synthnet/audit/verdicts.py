"""Verdicts of an audit: one line per criterion, pass, fail, or not applicable with the reason, with bootstrap intervals."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from synthnet.audit.audit import OURS
from synthnet.audit.evaluation import interval
from synthnet.audit.measures import COPY_SHARE, Measured
from synthnet.nets import ACCURACY_MARGIN

RATIO = 0.8  # of SGD nets' own diversity
ONE_SIDED = -1.645  # 5 % quantile of the standard normal distribution
APART, LITTLE = 0.5, 0.5  # of what SGD nets lose between one another; points of accuracy too few to compare with
SURER = 3.0  # points of confidence
FEWEST = 16  # nets on each side of the test of copying
REFERENCES = (OURS, "held-out SGD nets", "training nets")


@dataclass(frozen=True)
class Verdict:
    """What was asked, what was found against which bar, and how sure that is (95 % interval, where there is one)."""

    criterion: str
    verdict: str
    value: float | None
    bar: str
    interval: list[float] | None
    reason: str


def judge(report: dict, sets: Mapping[str, Measured]) -> list[dict]:
    """All verdicts on the judged outputs of an audit's report."""
    ours, honest = sets[OURS], sets["held-out SGD nets"]
    return [
        asdict(v) for v in [_accuracy(ours, honest), *_copying(ours, honest, report), *_diversity(ours, honest, report)]
    ] + [asdict(v) for v in [_dominated(sets, report), _novel(report), *_basins(report)]]


def _verdict(passed: bool) -> str:
    return "pass" if passed else "fail"


def _accuracy(ours: Measured, honest: Measured) -> Verdict:
    gain = 100 * (ours.accuracy - honest.accuracy[: len(ours.accuracy)])
    bar, mean, between = -100 * ACCURACY_MARGIN, gain.mean().item(), interval(gain)
    reason, verdict = "points of accuracy above the twins from the same starts", _verdict(mean >= bar)
    if between[0] < bar <= between[1]:
        verdict, reason = "not applicable", f"{reason}: too few seeds to say on which side of the bar"
    return Verdict("accuracy", verdict, mean, f"at least {bar:.1f} points", between, reason)


def _copying(ours: Measured, honest: Measured, report: dict) -> list[Verdict]:
    row, made = report["sets"][OURS], []
    for name, key, values, reference in (
        ("no copying (aligned)", "zu_aligned", ours.aligned, honest.aligned),
        ("no copying (raw)", "zu_raw", ours.raw, honest.raw),
    ):
        low, high = interval(100 * (values / reference.mean() - 1))
        reason = (
            f"z of distances to the nearest training net against other starts' SGD nets (shift {low:+.1f} to {high:+.1f} %)"
        )
        verdict = _verdict(row[key] >= ONE_SIDED)
        if len(honest.aligned) < 2 * FEWEST:
            verdict, reason = "not applicable", f"{reason}: fewer than {2 * FEWEST} unseen seeds cannot tell"
        made.append(Verdict(name, verdict, row[key], f"at least {ONE_SIDED}", None, reason))
    reason = f"share of outputs nearer to a training net than {COPY_SHARE} times what any held-out SGD net is (aligned)"
    return [*made, Verdict("no single copies", _verdict(row["copies"] == 0), row["copies"], "none", None, reason)]


def _diversity(ours: Measured, honest: Measured, report: dict) -> list[Verdict]:
    identity, bar = report["identity"], f"at least {RATIO} of SGD nets'"
    pairs = torch.tensor(identity["aligned_distance"]["pairs"], dtype=torch.float64)
    ratio = identity["aligned_distance"]["ratio"]
    made = [
        Verdict(
            "seeds differ in weights",
            _verdict(ratio >= RATIO),
            ratio,
            bar,
            interval(pairs),
            "distance between outputs of two seeds after balancing, scaling and alignment",
        )
    ]
    counts = ours.accuracy.mean() >= honest.accuracy.mean() - ACCURACY_MARGIN
    for name, key, text in (
        ("seeds differ in predictions", "disagreement", "share of images on which two outputs disagree"),
        ("ensembles gain", "ensemble_gain", "accuracy of 16 outputs together over one alone"),
    ):
        value = identity[key]["ratio"]
        if not counts:
            why = f"{text}; counts only within {100 * ACCURACY_MARGIN:.1f} points of SGD's accuracy: worse nets disagree more"
            made.append(Verdict(name, "not applicable", value, bar, None, why))
        elif value is None:
            made.append(Verdict(name, "not applicable", None, bar, None, f"{text}; SGD nets show none"))
        else:
            made.append(Verdict(name, _verdict(value >= RATIO), value, bar, None, text))
    return made


def _basins(report: dict) -> list[Verdict]:
    found, made = report["basins"], []
    between = found["between"]
    reason = "accuracy lost half way between two aligned outputs, as a share of what SGD nets lose there"
    if between["sgd"] < LITTLE:
        reason, verdict = f"{reason}: these lose {between['sgd']:.2f} points only", "not applicable"
    else:
        verdict = _verdict(between["share"] >= APART)
    made.append(Verdict("basins of their own", verdict, between["share"], f"at least {APART}", between["interval"], reason))
    if "confidence" in found:
        ours, theirs = found["confidence"]["outputs"], found["confidence"]["sgd"]
        gaps = {name: 100 * (value - theirs[name]) for name, value in ours.items()}
        worst = max(gaps, key=lambda name: gaps[name])
        reason = f"confidence in foreign images above SGD nets', points ({', '.join(f'{n} {v:+.1f}' for n, v in gaps.items())})"
        passed = gaps[worst] <= SURER
        made.append(Verdict("not too sure", _verdict(passed), gaps[worst], f"at most {SURER:+.0f} points", None, reason))
    return made


def _dominated(sets: Mapping[str, Measured], report: dict) -> Verdict:
    mean = lambda name, key: report["sets"][name][key]["mean"]  # noqa: E731
    mine = OURS
    controls = [name for name in sets if name not in REFERENCES]
    better = [
        name
        for name in controls
        if mean(name, "accuracy") >= mean(mine, "accuracy") and mean(name, "max_error_iou") <= mean(mine, "max_error_iou")
    ]
    reason = f"as accurate and as novel in its errors: {', '.join(better)}" if better else "no control is both"
    value = mean(mine, "max_error_iou")
    return Verdict(
        "not dominated", _verdict(not better), value, "no control as accurate with as low max error-IoU", None, reason
    )


def _novel(report: dict) -> Verdict:
    mine = report["sets"][OURS]["novel_and_performant"]
    controls = {n: r["novel_and_performant"] for n, r in report["sets"].items() if n not in REFERENCES}
    above = [name for name, shares in controls.items() if any(shares[f] > mine[f] for f in mine)]
    reason = f"a control has more: {', '.join(above)}" if above else "more than any control at 1, 2, 4 and 6 spreads"
    verdict = _verdict(not above and mine["1"] > 0)
    return Verdict("novel and performant", verdict, mine["1"], "share at every distance at least any control's", None, reason)
