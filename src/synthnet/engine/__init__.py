"""Many nets at once: forward, score, train. Populations of weights of one architecture on tensors of examples."""

from synthnet.engine.netfiles import (
    NetFile,
    by_shapes,
    find_arch,
    input_files,
    match_net,
    open_net,
    output_files,
    result_files,
    write_all,
)
from synthnet.engine.network import Nets, Network, arch_of, network_of
from synthnet.engine.objective import CLASSES, Measure, Objective, ask_each, cross_entropy
from synthnet.engine.plan import set_memory_budget
from synthnet.engine.population import Recipe, Training, train_population, train_while
from synthnet.engine.quality import bounded, counted, quality
from synthnet.engine.quantised import rounded
from synthnet.engine.scoring import layer_errors, predictions, score
from synthnet.engine.stacks import leading
from synthnet.engine.variants import Variants
from synthnet.engine.variation import (
    AS_THEY_ARE,
    CHANNELS,
    LARGEST_WARP,
    PICTURE,
    STATISTICS,
    Variation,
    check_variation,
    shuffled,
)
