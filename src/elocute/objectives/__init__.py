"""Losses and their parts as pure functions of tensors: they know nothing of models, rewards or training."""
