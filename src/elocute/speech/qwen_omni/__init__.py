"""Qwen2.5-Omni's ends of speech: the thinker's ear, and the talker's voice (token2wav), of transformers' layers."""

from elocute.speech.qwen_omni.config import open_folder, read_part, shapes_of
from elocute.speech.qwen_omni.ear import Ear, make_ear
from elocute.speech.qwen_omni.voice import Voice, make_voice

__all__ = ["Ear", "Voice", "make_ear", "make_voice", "open_folder", "read_part", "shapes_of"]
