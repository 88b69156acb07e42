"""Query builders: what a Perceiver's output asks its latents with. One file each, chosen by name (`backbone.queries`).

The interface: `build(dim, n_descriptors)` gives a module `queries(units [net token dim], descriptors [token descriptor])` ->
[net token dim]. Whatever is asked, the answer is added to the unit's own content: a few latents cannot carry every weight.
"""

import importlib
import pkgutil

from torch import nn

from synthnet.errors import unknown


def query_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def build_queries(name: str, dim: int, n_descriptors: int) -> nn.Module:
    """The query builder of that name. Raises: InputError for an unknown one."""
    if name not in query_names():
        raise unknown("query builder", name, query_names())
    return importlib.import_module(f"{__name__}.{name}").build(dim, n_descriptors)
