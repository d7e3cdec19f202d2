"""MiniCPM-o 2.6's speech path, from and to its published folder: hear, write, speak. Vision is carried along."""

from elocute.models.minicpm_o.config import ChatTTSConfig, MiniCPMOConfig
from elocute.models.minicpm_o.model import PARTS, MiniCPMO, make_parts, open_folder
from elocute.models.minicpm_o.tts import ConditionalChatTTS, SpeechCache

__all__ = [
    "PARTS", "ChatTTSConfig", "ConditionalChatTTS", "MiniCPMO", "MiniCPMOConfig", "SpeechCache", "make_parts",
    "open_folder",
]  # fmt: skip
