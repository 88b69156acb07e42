"""Which tokens a network has under a token scheme."""

from synthnet.engine import Network
from synthnet.errors import InputError
from synthnet.policy.tokens import TokenLayout, build_layout, reads_units


def layout_of(
    tokens: dict, net: Network, vocabulary: dict[str, int] | None = None, n_classes: int | None = None
) -> TokenLayout:
    """The token layout of a network under a token scheme. Raises: InputError where the vocabulary does not cover it, or where
    classes have tokens and are not as many as the policy knows (None: it is made from this network)."""
    layout = build_layout(tokens, net.spec, net.symmetry if reads_units(tokens) else None, vocabulary)
    if n_classes is not None and layout.n_classes not in (None, n_classes):
        raise InputError(f"the policy knows {n_classes} classes one by one, this network has {layout.n_classes}")
    return layout
