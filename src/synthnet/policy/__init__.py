"""Weights in, a Gaussian over the next weights out: tokens, trunks, actions, synth steps, files."""

from synthnet.policy.action import WeightGaussian, standard_noise
from synthnet.policy.critic import lag
from synthnet.policy.experts import role_metrics
from synthnet.policy.file import check_record, read_policy
from synthnet.policy.growth import covering, told_spec, with_experts
from synthnet.policy.imagined import orthogonalised
from synthnet.policy.layouts import layout_of
from synthnet.policy.moe import MixtureKnobs, chosen_experts, mixtures, replayed_experts
from synthnet.policy.policy import ActionConfig, Policy, PolicyConfig
from synthnet.policy.rollout import Prompt, draw_prompt, rollout, synth_steps, synthesize_flat, with_noise
from synthnet.policy.serving import (
    check_cover,
    choose_steps,
    in_memory,
    spec_metadata,
    specs_of,
    start_weights,
    synthesize_nets,
)
from synthnet.policy.tokens import build_layout, reads_units
from synthnet.policy.trainable import PARTS, freeze_all_but, merged
