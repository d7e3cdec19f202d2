"""Rebuilds everything the repository ships as the starter: voices, codec, world, data and model."""
