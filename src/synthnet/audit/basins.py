"""Do nets of different seeds lie in basins of their own, and do they know what they do not know? Beside SGD nets from the same
starts.

Nets that are one solution with something added are as good between one another as they are themselves, whatever their
distance; SGD nets lose most of it there, aligned or not (Entezari et al. 2022, arXiv 2110.06296).
"""

import torch
from torch import Tensor

from synthnet.audit.connectivity import neighbours
from synthnet.audit.evaluation import interval
from synthnet.audit.measures import Field
from synthnet.engine import Network, Training, predictions, score, shuffled
from synthnet.grpo.rewards.calibration import calibration_error
from synthnet.seeds import generator
from synthnet.tasks import recipe_of, trained

MERGED, OWN_ORDER = 10, 32  # nets that are averaged; nets trained in batch orders of their own


def own_order(field: Field) -> Tensor:
    """SGD nets [net weights] from the first held-out starts, each in its own batch order: twins share one."""
    start = field.starts[:OWN_ORDER]
    return trained(field.task, start, Training(recipe_of(field.task), per_run_order=True), run_ids=list(range(len(start))))


def lost_between(field: Field, nets: Tensor) -> Tensor:
    """The accuracy that the middle of two aligned nets lacks beside its ends [pair]; pairs are neighbours."""
    one, other = neighbours(field.network.alignment, nets)
    accuracy = lambda flat: score(field.network, flat, field.inputs, field.labels)[0]  # noqa: E731
    return (accuracy(one) + accuracy(other)) / 2 - accuracy((one + other) / 2)


def lost_merged(field: Field, nets: Tensor) -> float:
    """The accuracy that the mean of ten nets, all aligned to the first, lacks beside single ones."""
    few = nets[:MERGED]
    aligned = torch.stack([few[0], *(field.network.alignment.align(each, few[0])[0].to(few) for each in few[1:])])
    single, merged = (score(field.network, flat, field.inputs, field.labels)[0] for flat in (few, aligned.mean(0)[None]))
    return (single.mean() - merged.mean()).item()


def confidence(net: Network, inputs: Tensor, nets: Tensor) -> dict[str, Tensor]:
    """The mean confidence of each of `nets` [net] in images whose pixels are shuffled, each by an order of its own, and in
    noise."""
    draw = generator(0, "shuffled-pixels")
    foreign = {"shuffled": shuffled(inputs, draw), "noise": torch.randn(inputs.shape, generator=draw).to(inputs)}
    return {name: predictions(net, nets, images).amax(-1).mean(1) for name, images in foreign.items()}


def basins(field: Field, outputs: Tensor) -> dict:
    """Each measure for outputs and for SGD nets in their own batch order; `share`: what outputs lose between one another as a
    share of what these do, with an interval over pairs."""
    honest, found = own_order(field), {}
    sides = {"outputs": outputs, "sgd": honest}
    lost = {name: 100 * lost_between(field, nets) for name, nets in sides.items()}
    whole = lost["sgd"].mean().clamp_min(1e-9)
    found["between"] = {name: values.mean().item() for name, values in lost.items()}
    found["between"] |= {"share": (lost["outputs"].mean() / whole).item(), "interval": interval(lost["outputs"] / whole)}
    found["merged"] = {name: 100 * lost_merged(field, nets) for name, nets in sides.items()}
    if field.network.objective.kind == "classes":
        sides = {"outputs": outputs[: len(honest)], "sgd": honest}
        said = {name: predictions(field.network, nets, field.inputs) for name, nets in sides.items()}
        found["calibration_error"] = {name: calibration_error(each, field.labels).mean().item() for name, each in said.items()}
        if field.task.floating:
            sure = {name: confidence(field.network, field.inputs, nets) for name, nets in sides.items()}
            found["confidence"] = {name: {kind: each.mean().item() for kind, each in row.items()} for name, row in sure.items()}
    return found
