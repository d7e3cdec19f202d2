"""The sound of Kimi-Audio: what it hears beside codes, and its voice."""

from elocute.speech.kimi.bigvgan import BigVGAN
from elocute.speech.kimi.detokenizer import Detokenizer
from elocute.speech.kimi.flow import Flow
from elocute.speech.kimi.whisper import WhisperFeatures

__all__ = ["BigVGAN", "Detokenizer", "Flow", "WhisperFeatures"]
