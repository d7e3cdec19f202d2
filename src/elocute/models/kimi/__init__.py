"""Kimi-Audio (Moonshot AI 2025): text and speech in two parallel streams, read from its published folder."""

from elocute.models.kimi.config import KimiConfig, read_config
from elocute.models.kimi.network import KimiForCausalLM, KimiHidden, KimiLogits, KimiModel, VQAdaptor
from elocute.models.kimi.prompt import Marks, Prompt, Said, find_marks, fit_features, lay_out_prompt, load_vocabulary
from elocute.models.kimi.published import check_network, load_adaptor, load_network, save_network
from elocute.models.kimi.reply import Cells, Reply, lay_out_target, read_reply
from elocute.models.kimi.tokenizer import KimiTokenizer

__all__ = [
    "Cells", "KimiConfig", "KimiForCausalLM", "KimiHidden", "KimiLogits", "KimiModel", "KimiTokenizer", "Marks",
    "Prompt", "Reply", "Said", "VQAdaptor", "check_network", "find_marks", "fit_features", "lay_out_prompt",
    "lay_out_target", "load_adaptor", "load_network", "load_vocabulary", "read_config", "read_reply", "save_network",
]  # fmt: skip
