"""The sound of Kimi-Audio: what it hears beside codes."""

from elocute.speech.kimi.whisper import WhisperFeatures

__all__ = ["WhisperFeatures"]
