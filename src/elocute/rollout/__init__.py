"""Sampling groups of answers."""

from elocute.rollout.sampler import Rollout, Sampling, check_room, replay, sample_groups
from elocute.rollout.seeds import seed_of

__all__ = ["Rollout", "Sampling", "check_room", "replay", "sample_groups", "seed_of"]
