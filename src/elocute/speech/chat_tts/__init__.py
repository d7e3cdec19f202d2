"""The codec of ChatTTS in MiniCPM-o 2.6."""

from elocute.speech.chat_tts.codec import ChatTTSCodec

__all__ = ["ChatTTSCodec"]
