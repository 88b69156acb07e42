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
from synthnet.policy.moe import mixtures
from synthnet.seeds import generator

if TYPE_CHECKING:
    from synthnet.policy.policy import Policy, PolicyConfig

PARTING = 0.01  # of the spread of a gate's weights: by how much the gates of an expert's copies differ at first


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


@torch.no_grad()
def with_experts(policy: "Policy", experts: int, seed: int) -> "Policy":
    """The policy, with each expert as several that begin as copies of it (sparse upcycling, Komatsuzaki et al. 2022, arXiv
    2212.05055). It makes of nets what it made: copies share the gate's probability, and put out as much more. Gates of copies
    differ by a little, drawn by the seed. Raises: InputError for a number that the experts there are do not divide."""
    has, top_k = policy.config.backbone.get("experts", 0), policy.config.backbone.get("top_k", 1)
    if experts == has:
        return policy
    if not has or experts < has or experts % has or top_k != 1:
        raise InputError(
            f"backbone.experts is {experts} here and {has} in the policy of policy_from: each of its experts can become "
            "several, so ask for a multiple, of a policy whose tokens use one expert each"
        )
    wide = regrown(policy, replace(policy.config, backbone={**policy.config.backbone, "experts": experts}), "experts", seed)
    draw, copies = generator(seed, "gates"), experts // has
    for part, old in zip(mixtures(wide), mixtures(policy), strict=True):
        part.load_state_dict({name: value.repeat_interleave(copies, 0) for name, value in old.state_dict().items()})
        part.down.mul_(copies), part.down_bias.mul_(copies)
        noise = torch.randn(part.gate.weight.shape, generator=draw)
        part.gate.weight.add_(PARTING * noise * old.gate.weight.std())
        if part.usage is not None:
            part.usage.div_(copies)
    return wide


def told_spec(config: "PolicyConfig", variants: Variants | None) -> "PolicyConfig":
    """What a new policy is made of, told as many numbers of a spec as there are, or as backbone.spec says: all or none."""
    size, asked = variants.width if variants else 0, config.backbone.get("spec", 0)
    if asked not in (None, 0, size):
        raise InputError(f"backbone.spec is {asked}, and the task's spec is told as {size} numbers: pass {size}, 0 or null")
    if "spec" not in config.backbone:  # a trunk that is told nothing
        return config
    return replace(config, backbone={**config.backbone, "spec": size if asked is None else asked})
