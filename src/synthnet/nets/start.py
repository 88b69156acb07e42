"""Start weights: torch's default initialisation as a rule on names and shapes, so that scales never come from an input file."""

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from synthnet.errors import InputError
from synthnet.nets.weights import WeightSpec


def draw_init(spec: WeightSpec, draw: torch.Generator) -> Tensor:
    """Start weights [weights] by torch's default rule for Linear and Conv: uniform in ±1/√fan_in, biases too.

    A norm starts as the identity: scale and running variance 1, shift and running mean 0.
    """
    flat = torch.rand(spec.n_weights, generator=draw).mul_(2).sub_(1).mul_(init_scale(spec))
    places, deciding = spec.slices(), _deciding_shapes(spec)
    for tensor in spec.floats:
        if len(tensor.shape) == 1 and len(deciding[tensor.name]) < 2:
            flat[places[tensor.name]] = float(tensor.name.rpartition(".")[2] in ("weight", "running_var"))
    return flat


@lru_cache(maxsize=64)
def init_scale(spec: WeightSpec) -> Tensor:
    """The scale of each weight [weights], from names and shapes alone: 1/√fan_in, torch's initial bound for Linear and Conv.

    A bias takes the fan-in of the weight it stands beside; a lone one-dimensional tensor (a norm's scale) takes 1.
    """
    deciding, parts = _deciding_shapes(spec), []
    for tensor in spec.floats:
        fan_in = prod(deciding[tensor.name][1:])
        parts.append(torch.full((prod(tensor.shape),), max(fan_in, 1) ** -0.5))
    return torch.cat(parts)


def _deciding_shapes(spec: WeightSpec) -> dict[str, tuple[int, ...]]:
    """The shape that decides how each tensor starts: its own if it has two axes or more, else that of the weight beside it,
    if there is one. Fewer than two axes: the tensor is a norm's."""
    shapes = {tensor.name: tensor.shape for tensor in spec.floats}
    beside = {name: shapes.get(_beside(name), ()) for name in shapes}
    return {name: shape if len(shape) > 1 else beside[name] for name, shape in shapes.items()}


def _beside(name: str) -> str:
    """The weight that a bias stands beside: fc.weight of fc.bias, gru.weight_hh_l0 of gru.bias_hh_l0."""
    owner, dot, own = name.rpartition(".")
    return f"{owner}{dot}{own.replace('bias', 'weight')}" if "bias" in own else f"{owner}{dot}weight"


NORM_STARTS = {"weight": 1.0, "bias": 0.0, "running_var": 1.0, "running_mean": 0.0}
DEVIATIONS = 4.0  # of the mean square of so many uniform draws: what lies within is a start as it was expected
SMALLEST, NARROWEST = 1e-30, 1e-3  # root mean squares below which float32 tells too little; deviation, as a share of them
OUTLIER, SLACK = 1.1, 1.0  # largest singular value as a share of what independent numbers have, and what small matrices may add


def match_start(spec: WeightSpec, flat: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Start weights [weights] with each tensor at the root mean square of `draw_init`, and by what those were scaled that
    needed it: where the mean square lies within four deviations of what so many draws have, not a bit changes. Zero biases
    stay zero; norms begin as the identity, whatever the file has (their factor is what they are set to).

    Raises: InputError for a tensor that is constant, or whose numbers are too small to be told apart. Figures:
    docs/experiments/start-weights.md.
    """
    scale, places, factors = init_scale(spec), spec.slices(), {}
    for name, shape in random_tensors(spec):
        place = places[name]
        own = flat[place].double()
        square, expected = own.square().mean(), float(scale[place][0]) ** 2 / 3
        if not square:
            continue
        if not square.isfinite() or not flat[place].isfinite().all():
            raise InputError(f"{name} holds numbers beyond what float32 can hold; start weights are computed in float32")
        if square.sqrt() < SMALLEST:
            raise InputError(f"{name} holds numbers of about {float(square.sqrt()):.0e}, too small for float32 to tell apart")
        if len(shape) > 1 and len(own) > 1 and own.std() < NARROWEST * square.sqrt():
            raise InputError(
                f"{name} is constant ({float(own[0]):.4g} throughout): start weights are the noise, draw them at random"
            )
        # of x uniform in ±s: mean square s²/3, whose deviation over n draws is s²√(4/45n)
        if abs(square / expected - 1) > DEVIATIONS * 3 * (4 / 45 / len(own)) ** 0.5:
            factors[name] = float((expected / square).sqrt())
            flat = flat.clone() if len(factors) == 1 else flat  # the caller's stays as it is
            flat[place] = (own * factors[name]).float()
    for name, value in _norms(spec).items():
        if not (flat[places[name]] == value).all():
            flat = flat if factors else flat.clone()
            flat[places[name]], factors[name] = value, value
    return flat, factors


def _norms(spec: WeightSpec) -> dict[str, float]:
    """What the tensors of norms start at: scale and running variance 1, shift and running mean 0."""
    random = {name for name, _ in random_tensors(spec)}
    known = {
        tensor.name: NORM_STARTS.get(tensor.name.rpartition(".")[2]) for tensor in spec.floats if tensor.name not in random
    }
    return {name: value for name, value in known.items() if value is not None}


def one_sided(spec: WeightSpec, flat: Tensor) -> list[str]:
    """The matrices whose mean lies beyond what independent numbers around 0 have: six deviations of their own mean."""
    places = spec.slices()
    of_name = {name: flat[places[name]].double() for name, shape in random_tensors(spec) if len(shape) > 1}
    return [name for name, own in of_name.items() if own.mean().abs() * len(own) ** 0.5 > 6 * own.square().mean().sqrt()]


def random_tensors(spec: WeightSpec) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors that `draw_init` draws: all but those of norms."""
    deciding = _deciding_shapes(spec)
    return [(tensor.name, tensor.shape) for tensor in spec.floats if len(deciding[tensor.name]) > 1]


def looks_trained(spec: WeightSpec, flat: Tensor) -> list[str]:
    """The matrices whose largest singular value lies beyond that of independent numbers of one deviation, whatever their law
    and scale: σ(√m + √n) and fluctuations that fall with size (Marčenko and Pastur 1967; Yin, Bai and Krishnaiah 1988)."""
    found, places = [], spec.slices()
    for name, shape in random_tensors(spec):
        if len(shape) < 2 or min(rows := shape[0], columns := prod(shape[1:])) < 8 or rows * columns > 1 << 18:
            continue
        matrix = flat[places[name]].double().reshape(rows, columns)
        matrix = matrix - matrix.mean()
        limit = float(matrix.std()) * (rows**0.5 + columns**0.5) * (OUTLIER + SLACK / min(rows, columns))
        if float(torch.linalg.matrix_norm(matrix, 2)) > limit:
            found.append(name)
    return found
