"""elocute: reinforcement learning and preference optimisation from AI feedback for language models that speak."""

__version__ = "0.1.0"
