"""VITA-Audio (Long et al. 2025), read from its published folders: the parts, each loaded alone."""

from elocute.models.vita.config import VitaConfig, VitaPlusConfig, published_mode, read_config, read_mode
from elocute.models.vita.decoding import Decoding, deepest_of, depths_of, said_by, sampling_mode
from elocute.models.vita.interleave import Heard, interleave, read_ratio
from elocute.models.vita.network import VitaForCausalLM, depth_of, is_mtp, write_audio
from elocute.models.vita.tokens import VitaTokens, load_tokens
from elocute.models.vita.user_audio import UserAudio, check_ears, n_embeddings
from elocute.models.vita.weights import (
    check_network,
    drop_padding,
    load_mtp,
    load_network,
    load_projector,
    save,
)

__all__ = [
    "Decoding", "Heard", "UserAudio", "VitaConfig", "VitaForCausalLM", "VitaPlusConfig", "VitaTokens", "check_ears",
    "check_network", "deepest_of", "depth_of", "depths_of", "drop_padding", "interleave", "is_mtp", "load_mtp",
    "load_network", "load_projector", "load_tokens", "n_embeddings", "published_mode", "read_config", "read_mode",
    "read_ratio", "said_by", "sampling_mode", "save", "write_audio",
]  # fmt: skip
