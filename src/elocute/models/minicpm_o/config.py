"""What a MiniCPM-o 2.6 folder's config.json says of the parts of its speech path.

The originals' defaults stand where config.json may be silent. Other sizes, ids and flags come from the file.
"""

from dataclasses import dataclass, fields
from pathlib import Path

from transformers import LlamaConfig, Qwen2Config, WhisperConfig

from elocute.data.files import read_json
from elocute.errors import InputError

_LLM_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache", "tie_word_embeddings",
    "use_sliding_window", "sliding_window", "max_window_layers", "attention_dropout", "bos_token_id", "eos_token_id",
    "pad_token_id",
)  # fmt: skip


@dataclass(frozen=True)
class ChatTTSConfig:
    """`tts_config`: the decoder that speaks.

    llm_dim: width of the LLM's hidden states. The text has streaming_text_reserved_len slots, and the audio sees
    streaming_text_chunk_size more of them every 50 frames: 50 is fixed in the original, which defines
    streaming_audio_chunk_size and does not use it there.
    """

    llm_dim: int
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_attention_heads: int = 12
    num_hidden_layers: int = 20
    max_position_embeddings: int = 4096
    num_audio_tokens: int = 626
    num_text_tokens: int = 21178
    num_mel_bins: int = 100
    num_vq: int = 4
    num_spk_embs: int = 1
    use_mlp: bool = True
    spk_emb_token_id: int = 21143
    audio_bos_token_id: int = 21132
    text_eos_token_id: int = 21133
    streaming_text_reserved_len: int = 300
    streaming_text_chunk_size: int = 10

    @property
    def eos(self) -> int:
        """The code that ends the speech, whichever codebook it is drawn in: the last of the head."""
        return self.num_audio_tokens - 1

    @property
    def audio_start(self) -> int:
        """The position of the audio's first input, [Ptts], behind [Stts], [spk_emb] and the text's slots."""
        return self.streaming_text_reserved_len + 2

    @property
    def most_frames(self) -> int:
        """The longest speech that there are positions for."""
        return self.max_position_embeddings - self.audio_start

    def llama(self) -> LlamaConfig:
        """Of the decoder's transformer: Llama's own defaults but for the sizes; θ is 10000, not the LLM's."""
        return LlamaConfig(
            vocab_size=1,  # its table of embeddings is never used; see ConditionalChatTTS
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_attention_heads,
            num_hidden_layers=self.num_hidden_layers,
            max_position_embeddings=self.max_position_embeddings,
            bos_token_id=None,
            eos_token_id=None,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )


@dataclass(frozen=True)
class MiniCPMOConfig:
    """config.json. audio_chunk_length in seconds; chunk_input None: the file does not say it."""

    llm: Qwen2Config
    audio: WhisperConfig
    tts: ChatTTSConfig
    audio_pool_step: int = 2
    audio_chunk_length: float = 1.0
    chunk_input: bool | None = None

    @property
    def attention_chunk(self) -> int:
        """Frames of the audio encoder (50 Hz) that see each other, and all before them."""
        return int(self.audio_chunk_length * 50)

    @classmethod
    def read(cls, folder: str | Path) -> "MiniCPMOConfig":
        """InputError unless it is the config.json of a MiniCPM-o 2.6 with speech."""
        file = Path(folder) / "config.json"
        said = read_json(file, "the config.json of a MiniCPM-o 2.6")
        if said.get("model_type") != "minicpmo":
            raise InputError(f"{file}: model_type: expected minicpmo (MiniCPM-o 2.6), got {said.get('model_type')!r}")
        for key in ("hidden_size", "vocab_size", "audio_config", "tts_config"):
            if not said.get(key):
                raise InputError(f"{file}: {key}: missing")
        try:
            llm = Qwen2Config(**{key: said[key] for key in _LLM_KEYS if key in said}, **_rope(said))
            audio = WhisperConfig(**{k: v for k, v in said["audio_config"].items() if "attn_implementation" not in k})
            tts = _read_tts(file, said["tts_config"], llm.hidden_size)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise InputError(f"{file}: not the config.json of a MiniCPM-o 2.6: {error}") from error
        more = ("audio_pool_step", "audio_chunk_length", "chunk_input")
        return cls(llm, audio, tts, **{key: said[key] for key in more if key in said})


def _rope(said: dict) -> dict:
    """The rotary settings under the name that transformers 5 reads; without it θ would be 10000."""
    if said.get("rope_parameters"):
        return {"rope_parameters": said["rope_parameters"]}
    scaling = said.get("rope_scaling") or {"rope_type": "default"}
    return {"rope_parameters": {"rope_theta": float(said.get("rope_theta", 10000.0))} | scaling}


def _read_tts(file: Path, said: dict, width: int) -> ChatTTSConfig:
    if said.get("model_type", "conditional_chattts") != "conditional_chattts":
        raise InputError(f"{file}: tts_config: model_type: expected conditional_chattts, got {said['model_type']!r}")
    known = {field.name for field in fields(ChatTTSConfig)}
    config = ChatTTSConfig(**{"llm_dim": width} | {key: value for key, value in said.items() if key in known})
    for key, value in {"num_spk_embs": 1, "use_mlp": True, "llm_dim": width}.items():
        if getattr(config, key) != value:
            raise InputError(f"{file}: tts_config: {key}: expected {value}, got {getattr(config, key)!r}")
    return config
