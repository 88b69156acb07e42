"""Explicit randomness: every random draw comes from a generator that is derived from (run seed, purpose, index).

No global seed is ever set. Two draws with different purposes are independent; the same triple gives the same bits.
"""

import hashlib

import torch


def generator(seed: int, purpose: str, *index: int | str) -> torch.Generator:
    """A CPU generator that is a pure function of its arguments.

    The arguments are joined into a text and hashed (SHA-256), so neighbouring seeds share no structure.
    """
    text = "/".join([str(int(seed)), purpose, *map(str, index)])
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


START_PURPOSES = ("zoo", "heldout", "val", "test", "user")


def start_generator(purpose: str, task: str, seed: int) -> torch.Generator:
    """The generator of one start state. Purposes are disjoint: zoo | heldout | val | test | user."""
    if purpose not in START_PURPOSES:
        raise ValueError(f"purpose must be one of {START_PURPOSES}, got {purpose!r}")
    return generator(seed, f"start/{purpose}", task)
