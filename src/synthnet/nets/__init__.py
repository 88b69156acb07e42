"""A net as tensors and unit groups: weight files, architectures, start weights, symmetries, identity. Knows no data."""

from synthnet.nets.arch import Arch, recognise
from synthnet.nets.axes import Axis, UntraceableError
from synthnet.nets.chain import ACTIVATIONS, Chain, step, trace
from synthnet.nets.exr import to_image
from synthnet.nets.identity import (
    ACCURACY_MARGIN,
    aligned_distance,
    canonical,
    disagreement,
    ensemble_gain,
    identity_report,
    own_twin_rank,
    pair_distances,
    prediction_shortfall,
    right,
    shortfall,
)
from synthnet.nets.piece import Piece
from synthnet.nets.start import NORM_STARTS, draw_init, init_scale, looks_trained, match_start, one_sided
from synthnet.nets.symmetry import Symmetry
from synthnet.nets.tracing import traced_symmetry
from synthnet.nets.user_code import asked, load_function, split_name
from synthnet.nets.weights import (
    TensorSpec,
    WeightSpec,
    WeightState,
    metadata_json,
    read_header,
    read_metadata,
    read_weights,
    write_weights,
)
