"""Randomness by name: every draw in a run is a function of its seed, its stage and its place in the run."""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *names: int | str) -> int:
    """A 63-bit seed for the purpose that `names` spell out, unrelated to the seeds of other purposes."""
    text = ":".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: int | str) -> torch.Generator:
    """A CPU generator seeded for one purpose."""
    return torch.Generator().manual_seed(derive(seed, *names))
