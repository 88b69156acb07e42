"""Which part of a policy a stage trains: heads, FiLM, low-rank changes; what is frozen, merged and refused."""

import pytest
import torch

from conftest import make_policy
from synthnet.errors import InputError
from synthnet.policy.trainable import freeze_all_but, merged


@pytest.mark.parametrize("part", ["head", "film", "lora"])
def test_only_the_chosen_part_is_trained_and_low_rank_changes_merge(tiny, part):
    policy = make_policy(tiny)
    start, whole = tiny.draw_start("val", [0, 1]), make_policy(tiny)
    freeze_all_but(policy, part, 2, seed=0)
    assert torch.allclose(policy(start, 1, tiny.network).mean, whole(start, 1, tiny.network).mean)
    chosen = [p for p in policy.parameters() if p.requires_grad]
    assert 0 < sum(p.numel() for p in chosen) < whole.n_parameters
    with torch.no_grad():
        for parameter in chosen:
            parameter += 0.05
    plain = merged(policy)
    assert torch.allclose(plain(start, 1, tiny.network).mean, policy(start, 1, tiny.network).mean, atol=1e-5)
    assert set(plain.state_dict()) == set(whole.state_dict())
    assert not torch.allclose(plain(start, 1, tiny.network).mean, whole(start, 1, tiny.network).mean, atol=1e-3)


def test_parts_that_a_policy_does_not_have_are_refused(tiny):
    with pytest.raises(InputError, match="one of all"):
        freeze_all_but(make_policy(tiny), "tail", 2, 0)
    flat = make_policy(tiny, {"name": "flat_mlp", "hidden": 8}, {"name": "chunk"})
    with pytest.raises(InputError, match="no such part"):
        freeze_all_but(flat, "film", 2, 0)
    with pytest.raises(InputError, match="tokens=unit"):
        flat.with_code(8, 0)
