"""What a policy is made of for a task: told as much as its spec has, and, where it goes on with nets that it has no columns
for, grown by these, with all that it has learned kept."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from synthnet.engine import Variants, network_of
from synthnet.errors import InputError
from synthnet.nets import Arch
from synthnet.policy.layouts import layout_of
from synthnet.policy.policy import Policy, PolicyConfig
from synthnet.seeds import generator


def covering(policy: Policy, archs: Sequence[Arch], seed: int) -> Policy:
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
    backbone = {**policy.config.backbone, **({"siblings": True} if hears else {})}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, "growth").initial_seed())
        grown = Policy(replace(policy.config, backbone=backbone), policy.archs, vocabulary)
    state, own = grown.state_dict(), policy.state_dict()
    for name in state:
        if name not in own:
            state[name] = torch.zeros_like(state[name]) if ".together.1." in name else state[name]
        else:
            state[name][tuple(map(slice, own[name].shape))] = own[name]  # columns are in the order of the vocabulary
    grown.load_state_dict(state)
    grown.record, grown.data_sets, grown.variants = policy.record, policy.data_sets, policy.variants
    return grown.to(policy.device).train(policy.training)


def told_spec(config: PolicyConfig, variants: Variants | None) -> PolicyConfig:
    """What a new policy is made of, told as many numbers of a spec as there are, or as backbone.spec says: all or none."""
    size, asked = len(variants.names) if variants else 0, config.backbone.get("spec", 0)
    if asked not in (None, 0, size):
        raise InputError(f"backbone.spec is {asked}, and the task's spec has {size} numbers: pass {size}, 0 or null")
    if "spec" not in config.backbone:  # a trunk that is told nothing
        return config
    return replace(config, backbone={**config.backbone, "spec": size if asked is None else asked})
