"""Trunks: from tokens to an update of the same shape. One file per trunk, with a `Config` dataclass and a `build`.

The interface: `trunk(tokens: Tokens, layout: TokenLayout, steps_left: [net] int) -> Tokens`. A trunk knows neither the
head nor the trainer. Trunks over unit tokens also take a latent `code` [net code dim] and give `features` [net dim].
"""

import importlib
import pkgutil

from torch import nn

from synthnet.errors import InputError, unknown
from synthnet.policy.tokens import TokenLayout


def backbone_names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def build_backbone(config: dict, layout: TokenLayout, k_max: int) -> nn.Module:
    """The trunk {name, …} for layouts with these widths. Raises: InputError for an unknown name or setting."""
    settings = dict(config)
    name = settings.pop("name")
    if name not in backbone_names():
        raise unknown("backbone", name, backbone_names())
    module = importlib.import_module(f"synthnet.policy.trunks.{name}")
    try:
        return module.build(module.Config(**settings), layout, k_max)
    except TypeError as error:
        raise InputError(f"backbone {name}: {error}") from error
