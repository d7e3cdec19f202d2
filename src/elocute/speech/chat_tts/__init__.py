"""The codec of ChatTTS in MiniCPM-o 2.6."""

from elocute.speech.chat_tts.codec import ChatTTSCodec, check_codec

__all__ = ["ChatTTSCodec", "check_codec"]
