"""Many nets at once: forward, score, train. Populations of weights of one architecture on tensors of examples."""

from synthnet.engine.netfiles import (
    NetFile,
    find_arch,
    input_files,
    open_net,
    output_files,
    result_files,
    without_prefix,
    write_all,
)
from synthnet.engine.network import Network, cross_entropy, layer_errors, network_of, predictions, score
from synthnet.engine.plan import set_memory_budget
from synthnet.engine.population import Recipe, Training, train_population
from synthnet.engine.quality import bounded, counted, quality
from synthnet.engine.stacks import leading
from synthnet.engine.variation import AS_THEY_ARE, LARGEST_WARP, PICTURE, STATISTICS, Variation, check_warp
