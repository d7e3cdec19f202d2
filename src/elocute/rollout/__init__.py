"""Sampling groups of answers."""

from elocute.rollout.sampler import Rollout, Sampling, sample_groups
from elocute.rollout.seeds import seed_of

__all__ = ["Rollout", "Sampling", "sample_groups", "seed_of"]
