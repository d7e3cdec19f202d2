"""Folders as VITA-Audio publishes them, tiny and random: written by their published names, not by our classes."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WIDTH, HEADS, KV_HEADS, FFN = 32, 4, 2, 48
STATE, ENCODER_FFN, BLOCKS, LAST, CTC = 16, 24, 2, 1, 40  # of SenseVoice
N_UNITS = 16384
QWEN = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def control_tokens(plus: bool) -> list[str]:
    media = [f"<|{place}_of_{kind}|>" for kind in ("image", "video", "patch") for place in ("begin", "end", "context")]
    audio = ["<|begin_of_audio|>", "<|end_of_audio|>", *(["<|context_of_audio|>"] if plus else [])]
    boxes = [f"<|{place}_of_{kind}|>" for kind in ("quad", "ref", "box") for place in ("begin", "end")]
    return [*media, *audio, *boxes, "<|image|>", "<|video|>", "<|audio|>"]


def write_tokenizer(folder: Path, plus: bool, n_units: int = N_UNITS) -> int:
    """256 bytes, Qwen2.5's added tokens, VITA-Audio's, the units. Returns how many there are."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: id for id, char in enumerate(alphabet)}, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [*QWEN, *control_tokens(plus)]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(f"<|audio_{unit}|>", normalized=False) for unit in range(n_units)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    fast.save_pretrained(folder)
    said = json.loads((folder / "tokenizer_config.json").read_text())
    said |= {"tokenizer_class": "Qwen2Tokenizer", "chat_template": "{{ 'not the one that is used' }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    (folder / "vocab.json").write_text(json.dumps({char: id for id, char in enumerate(alphabet)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return len(fast)


def config(plus: bool, main: int, n_mtp: int, vocab: int) -> dict:
    """As the originals' transformers wrote it, 4.48: rope_theta and torch_dtype by their old names."""
    kind = "Qwen2MTPSenseVoice" if plus else "Qwen2MTP"
    return {
        "architectures": [f"{kind}ForCausalLM"],
        "attention_dropout": 0.0,
        "auto_map": {"AutoModelForCausalLM": f"modeling_qwen2.{kind}ForCausalLM"},
        "bos_token_id": 256,
        "eos_token_id": 258,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": FFN,
        "max_position_embeddings": 512,
        "max_window_layers": main,
        "model_type": "qwen2_mtp_sensevoice" if plus else "qwen2_mtp",
        "mtp_loss_weight": 0.5,
        "num_attention_heads": HEADS,
        "num_hidden_layers": main + n_mtp,
        "num_key_value_heads": KV_HEADS,
        "num_nextn_predict_layers": n_mtp,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.48.3",
        "use_cache": False,
        "use_sliding_window": False,
        "vocab_size": vocab,
    } | ({} if plus else {"speech_token_offset": 151685})


def llm_weights(main: int, n_mtp: int, vocab: int) -> dict[str, torch.Tensor]:
    head = WIDTH // HEADS
    state = {
        "model.embed_tokens.weight": torch.randn(vocab, WIDTH),
        "lm_head.weight": torch.randn(vocab, WIDTH) / WIDTH**0.5,
        "model.norm.weight": 1 + 0.1 * torch.randn(WIDTH),
    }
    for layer in range(main + n_mtp):
        name = f"model.layers.{layer}"
        for part, rows in (("q", HEADS * head), ("k", KV_HEADS * head), ("v", KV_HEADS * head)):
            state |= linear(f"{name}.self_attn.{part}_proj", rows, WIDTH)
        state |= linear(f"{name}.self_attn.o_proj", WIDTH, HEADS * head, bias=False)
        state |= linear(f"{name}.mlp.gate_proj", FFN, WIDTH, bias=False)
        state |= linear(f"{name}.mlp.up_proj", FFN, WIDTH, bias=False)
        state |= linear(f"{name}.mlp.down_proj", WIDTH, FFN, bias=False)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            state[f"{name}.{norm}.weight"] = 1 + 0.1 * torch.randn(WIDTH)
    for module in range(n_mtp):
        state |= linear(f"mtp_projs.{module}", WIDTH, 2 * WIDTH, bias=False)
        for norm in ("mtp_embed_norms", "mtp_hidden_norms"):
            state[f"{norm}.{module}.weight"] = 1 + 0.1 * torch.randn(WIDTH)
    return state


def audio_weights() -> dict[str, torch.Tensor]:
    encoder = "model.audio_model.model.encoder"
    state = {"model.audio_model.model.embed.weight": torch.randn(16, 560)}
    state |= linear("model.audio_model.model.ctc.ctc_lo", CTC, STATE)
    stacks = ["encoders0.0", *(f"encoders.{i}" for i in range(BLOCKS - 1)), *(f"tp_encoders.{i}" for i in range(LAST))]
    for index, stack in enumerate(stacks):
        name, width = f"{encoder}.{stack}", STATE if index else 560
        state |= linear(f"{name}.self_attn.linear_q_k_v", 3 * STATE, width)
        state |= linear(f"{name}.self_attn.linear_out", STATE, STATE)
        state[f"{name}.self_attn.fsmn_block.weight"] = 0.2 * torch.randn(STATE, 1, 11)
        state |= linear(f"{name}.feed_forward.w_1", ENCODER_FFN, STATE)
        state |= linear(f"{name}.feed_forward.w_2", STATE, ENCODER_FFN)
        state |= norm_weights(f"{name}.norm1", width) | norm_weights(f"{name}.norm2", STATE)
    state |= norm_weights(f"{encoder}.after_norm", STATE) | norm_weights(f"{encoder}.tp_norm", STATE)
    projector = "model.audio_projection"
    state |= norm_weights(f"{projector}.pre_proj_layernorm", STATE)
    return (
        state
        | linear(f"{projector}.mlp.0", WIDTH, STATE, bias=False)
        | linear(f"{projector}.mlp.2", WIDTH, WIDTH, bias=False)
    )


def linear(name: str, rows: int, columns: int, bias: bool = True) -> dict[str, torch.Tensor]:
    state = {f"{name}.weight": torch.randn(rows, columns) / columns**0.5}
    return state | ({f"{name}.bias": 0.1 * torch.randn(rows)} if bias else {})


def norm_weights(name: str, width: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": 1 + 0.1 * torch.randn(width), f"{name}.bias": 0.1 * torch.randn(width)}


def write_weights(folder: Path, state: dict[str, torch.Tensor], shards: int) -> None:
    """In `shards` files with their index, or in one without."""
    if shards == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(state.items())[shard::shards])
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_statistics(folder: Path) -> None:
    shift = " ".join(f"{value:.6f}" for value in (-8 + 0.3 * torch.randn(560)).tolist())
    rescale = " ".join(f"{value:.6f}" for value in (0.2 + 0.02 * torch.rand(560)).tolist())
    lines = ["<Nnet>", "<Splice> 560 560", "[ 0 ]", "<AddShift> 560 560", f"<LearnRateCoef> 0 [ {shift} ]"]
    lines += ["<Rescale> 560 560", f"<LearnRateCoef> 0 [ {rescale} ]", "</Nnet>"]
    (folder / "am.mvn").write_text("\n".join(lines) + "\n")


def boost(folder: Path, main: int = 2, n_mtp: int = 3, n_units: int = N_UNITS, seed: int = 0) -> Path:
    """Boost or Balance: units in, units out. main = 11 gives layers 11 … 13, which hold `layers.1` as a string."""
    return _publish(folder, False, main, n_mtp, n_units, seed)


def plus(folder: Path, main: int = 2, n_mtp: int = 2, n_units: int = N_UNITS, seed: int = 0) -> Path:
    """Plus-Boost, or Plus-Vanilla with n_mtp = 0: features in, units out."""
    return _publish(folder, True, main, n_mtp, n_units, seed)


def _publish(folder: Path, plus: bool, main: int, n_mtp: int, n_units: int, seed: int) -> Path:
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    vocab = -(-write_tokenizer(folder, plus, n_units) // 8) * 8
    (folder / "config.json").write_text(json.dumps(config(plus, main, n_mtp, vocab), indent=2))
    generation = {"do_sample": True, "eos_token_id": [258, 256], "mtp_inference_mode": [1, 10, 4, 10]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    state = llm_weights(main, n_mtp, vocab)
    if plus:
        state |= audio_weights()
        write_statistics(folder)
        front_end = {"fs": 16000, "window": "hamming", "n_mels": 80, "lfr_m": 7, "lfr_n": 6, "cmvn_file": None}
        said = {"encoder": "SenseVoiceEncoderSmall", "encoder_conf": {"attention_heads": 4}, "frontend_conf": front_end}
        (folder / "config.yaml").write_text(json.dumps(said))
        (folder / "configuration.json").write_text("{}")
    write_weights(folder, state, shards=3)
    return folder
