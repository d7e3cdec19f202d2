"""The parts of Qwen2.5-Omni that are trained, the thinker's LLM and the talker, and what an answer of theirs is."""

from elocute.models.omni.network import Omni
from elocute.models.omni.prompt import ChatTemplate
from elocute.models.omni.reply import Layout, Reply

__all__ = ["ChatTemplate", "Layout", "Omni", "Reply"]
