"""What a policy is made of for a task: told as much as its spec has, and, where it goes on with nets that it has no columns
for, grown by these, with all that it has learned kept."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from synthnet.engine import Variants, network_of
from synthnet.errors import InputError
from synthnet.nets import Arch
from synthnet.policy.layouts import layout_of
from synthnet.seeds import generator

if TYPE_CHECKING:
    from synthnet.policy.policy import Policy, PolicyConfig


def covering(policy: "Policy", archs: Sequence[Arch], seed: int) -> "Policy":
    """The policy, with columns for what these nets have and it has not: ways in that are drawn anew and ways out that begin at
    zero, so that it makes of its own nets what it made before. Raises: InputError for nets that its tokens cannot serve."""
    layouts = [layout_of(policy.config.tokens, network_of(arch), None, policy.n_classes) for arch in archs]
    vocabulary = dict(policy.vocabulary)
    for layout in layouts:
        vocabulary |= {key: size for key, size in layout.vocabulary.items() if key not in vocabulary}
    deaf = hasattr(policy.trunk, "features") and not any(".together." in name for name in policy.state_dict())
    hears = deaf and any(layout.siblings is not None for layout in layouts)
    if vocabulary == policy.vocabulary and not hears:
        return policy
    config = replace(policy.config, backbone={**policy.config.backbone, "siblings": True}) if hears else policy.config
    grown = regrown(policy, config, "growth", seed, vocabulary)
    for name, value in grown.state_dict().items():
        if hears and ".together.1." in name:
            value.zero_()
    return grown


@torch.no_grad()
def regrown(
    policy: "Policy", config: "PolicyConfig", what: str, seed: int, vocabulary: dict[str, int] | None = None
) -> "Policy":
    """A policy of other settings, or of more columns, with all parameters that the given one has but for its part `what`; what
    it has not is drawn anew, by the seed and that name. Columns are in the order of the vocabulary: further ones follow."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, what).initial_seed())
        grown = type(policy)(config, policy.archs, vocabulary or policy.vocabulary)
    state = grown.state_dict()
    for name, value in policy.state_dict().items():
        if not name.startswith(f"{what}."):
            state[name][tuple(map(slice, value.shape))] = value
    grown.record, grown.data_sets, grown.variants = policy.record, policy.data_sets, policy.variants
    return grown.to(policy.device).train(policy.training)


def told_spec(config: "PolicyConfig", variants: Variants | None) -> "PolicyConfig":
    """What a new policy is made of, told as many numbers of a spec as there are, or as backbone.spec says: all or none."""
    size, asked = variants.width if variants else 0, config.backbone.get("spec", 0)
    if asked not in (None, 0, size):
        raise InputError(f"backbone.spec is {asked}, and the task's spec is told as {size} numbers: pass {size}, 0 or null")
    if "spec" not in config.backbone:  # a trunk that is told nothing
        return config
    return replace(config, backbone={**config.backbone, "spec": size if asked is None else asked})
