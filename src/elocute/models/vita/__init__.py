"""VITA-Audio (Long et al. 2025), read from its published folders: the parts, each loaded alone."""

from elocute.models.vita.config import VitaConfig, VitaPlusConfig, read_config, read_mode
from elocute.models.vita.decoding import Decoding, depths_of, said_by
from elocute.models.vita.interleave import Heard, interleave
from elocute.models.vita.loss import VitaLoss, training_loss, vita_loss
from elocute.models.vita.network import VitaForCausalLM, is_mtp, write_audio
from elocute.models.vita.tokens import VitaTokens, load_tokens
from elocute.models.vita.user_audio import UserAudio, n_embeddings
from elocute.models.vita.weights import check_network, load_network, read_beside, save

__all__ = [
    "Decoding", "Heard", "UserAudio", "VitaConfig", "VitaForCausalLM", "VitaLoss", "VitaPlusConfig", "VitaTokens",
    "check_network", "depths_of", "interleave", "is_mtp", "load_network", "load_tokens", "n_embeddings", "read_beside",
    "read_config", "read_mode", "said_by", "save", "training_loss", "vita_loss", "write_audio",
]  # fmt: skip
