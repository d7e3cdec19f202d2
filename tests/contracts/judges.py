"""Tiny random judges in exactly the folder layouts that are published: names of files, keys, tokens and parameters."""

import json
import string
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2TokenizerFast,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    WavLMConfig,
    WavLMForXVector,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

VERDICT = ["<justification>", "fine", "</justification>", "<score>", "</score>"]
_POINTS = list("12345")
# Mistral-7B-Instruct v0.1 and v0.2: no system turn, no parts, no space for anything else.
_MISTRAL_CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
_QWEN_MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
_CONVOLUTIONS = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=[16, 16, 16],
    conv_stride=[5, 8, 8], conv_kernel=[10, 8, 8], num_feat_extract_layers=3, num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2, feat_extract_norm="group", do_stable_layer_norm=False, initializer_range=0.3,
)  # fmt: skip


def mistral(folder: Path, *, writes_verdicts: bool = False, context: int = 32_768) -> Path:
    """Mistral-7B-Instruct-v0.2: shards with an index, a tokenizer without a pad token, its chat template.

    writes_verdicts: every reply is a verdict, whose score depends on what was asked.
    """
    torch.manual_seed(0)
    byte_tokens = [f"<0x{n:02X}>" for n in range(256)]
    letters = ["▁", *sorted(set(string.printable) - set(string.whitespace))]
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *byte_tokens, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in VERDICT] if writes_verdicts else [])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=_MISTRAL_CHAT
    )
    config = MistralConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=context, sliding_window=None, bos_token_id=1,
        eos_token_id=2, pad_token_id=None, initializer_range=0.2, dtype="float32",
    )  # fmt: skip
    model = MistralForCausalLM(config)
    if writes_verdicts:
        _write_verdicts(model.model.embed_tokens, model.lm_head, fast, after="]", end="</s>")
    model.save_pretrained(folder, max_shard_size="50KB")
    fast.save_pretrained(folder)
    assert (folder / "model.safetensors.index.json").is_file()
    return _as_published(folder)


def qwen2_audio(folder: Path, *, writes_verdicts: bool = False) -> Path:
    """Qwen2-Audio-7B-Instruct: 128 mel bands, ChatML, settings that ask for sampling and a penalty."""
    torch.manual_seed(0)
    base = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Qwen2TokenizerFast(vocab={token: i for i, token in enumerate(base)}, merges=[])
    fast.add_special_tokens({"additional_special_tokens": _QWEN_MARKS})
    fast.add_tokens([AddedToken(word, normalized=False) for word in VERDICT] if writes_verdicts else [])
    fast.pad_token, fast.eos_token = "<|endoftext|>", "<|im_end|>"
    ids = fast.get_vocab()
    Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=128), fast).save_pretrained(folder)
    config = Qwen2AudioConfig(
        audio_config=dict(
            num_mel_bins=128, d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, init_std=0.5
        ),
        text_config=dict(
            model_type="qwen2", vocab_size=len(fast), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, intermediate_size=48, max_position_embeddings=8192, initializer_range=0.2,
        ),
        audio_token_index=ids["<|AUDIO|>"],
    )  # fmt: skip
    model = Qwen2AudioForConditionalGeneration(config)
    if writes_verdicts:
        _write_verdicts(model.get_input_embeddings(), model.get_output_embeddings(), fast, after="Ċ", end="<|im_end|>")
    model.save_pretrained(folder)
    _change(
        folder / "generation_config.json", do_sample=True, temperature=0.7, top_p=0.5, top_k=20, repetition_penalty=1.1,
        eos_token_id=[ids["<|endoftext|>"], ids["<|im_end|>"]], pad_token_id=ids["<|endoftext|>"],
    )  # fmt: skip
    names = load_file(folder / "model.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"audio_tower", "language_model", "multi_modal_projector"}
    (folder / "chat_template.jinja").unlink()  # the published folder has none that transformers' processor reads
    return _as_published(folder)


def whisper(folder: Path) -> Path:
    """Whisper tiny, multilingual: 99 languages, time stamps, tokens that its first release forced and suppresses."""
    torch.manual_seed(0)
    base = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = WhisperTokenizer(vocab={token: i for i, token in enumerate(base)}, merges=[], language=None)
    tasks = ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
    specials = [f"<|{name}|>" for name in ("startoftranscript", *list(LANGUAGES)[:99], *tasks)]
    tokenizer.add_special_tokens({"additional_special_tokens": specials})
    tokenizer.add_tokens([AddedToken(f"<|{n * 0.02:.2f}|>", normalized=False) for n in range(1501)])
    ids = tokenizer.get_vocab()
    folder.mkdir(parents=True)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer).save_pretrained(folder)
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    forced = [[1, ids["<|en|>"]], [2, ids["<|transcribe|>"]], [3, ids["<|notimestamps|>"]]]
    legacy = {"forced_decoder_ids": forced, "begin_suppress_tokens": [ids["Ġ"], end], "suppress_tokens": [ids["#"]]}
    config = WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=80, d_model=16, encoder_layers=1, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        max_target_positions=448, decoder_start_token_id=start, pad_token_id=end, bos_token_id=end, eos_token_id=end,
        init_std=1.0,
    )  # fmt: skip
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    _change(folder / "config.json", **legacy)
    _change(
        folder / "generation_config.json", **legacy, alignment_heads=[[0, 0], [1, 1]], is_multilingual=True,
        lang_to_id={f"<|{name}|>": ids[f"<|{name}|>"] for name in list(LANGUAGES)[:99]},
        task_to_id={name: ids[f"<|{name}|>"] for name in ("transcribe", "translate")},
        no_timestamps_token_id=ids["<|notimestamps|>"], prev_sot_token_id=ids["<|startofprev|>"],
        max_initial_timestamp_index=50, max_length=24, return_timestamps=False,
    )  # fmt: skip
    return _as_published(folder)


def emotion(folder: Path) -> Path:
    """wav2vec2-base-superb-er: neu, hap, ang and sad; no attention mask; the first names of the weight norm."""
    labels = dict(enumerate(("neu", "hap", "ang", "sad")))
    config = Wav2Vec2Config(
        **_CONVOLUTIONS, id2label=labels, label2id={name: i for i, name in labels.items()}, classifier_proj_size=16,
        use_weighted_layer_sum=True,
    )  # fmt: skip
    return _listener(folder, Wav2Vec2ForSequenceClassification, config)


def speaker(folder: Path) -> Path:
    """wavlm-base-plus-sv: five TDNN layers and an x-vector; the first names of the weight norm."""
    config = WavLMConfig(
        **_CONVOLUTIONS, tdnn_dim=[16] * 5, tdnn_kernel=[5, 3, 3, 1, 1], tdnn_dilation=[1, 2, 3, 1, 1],
        xvector_output_dim=8, use_weighted_layer_sum=True,
    )  # fmt: skip
    return _listener(folder, WavLMForXVector, config)


def pickled(folder: Path) -> Path:
    """The same folder as it was first published: `pytorch_model.bin` instead of safetensors."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def _listener(folder: Path, model_class: Any, config: Any) -> Path:
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    first = ("parametrizations.weight.original0", "weight_g"), ("parametrizations.weight.original1", "weight_v")
    weights = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        for now, before in first:
            name = name.replace(now, before)
        weights[name] = weight.contiguous()
    assert any(name.endswith("pos_conv_embed.conv.weight_g") for name in weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False).save_pretrained(folder)
    return _as_published(folder)


def _write_verdicts(embedding, head, tokenizer, after: str, end: str) -> None:
    """What follows a token of the chain is certain, but for the score: that one is the random layers' choice."""
    ids = tokenizer.get_vocab()
    points = [ids[point] for point in _POINTS]
    words = [ids[word] for word in VERDICT]
    chain = [([ids[after]], words[:1]), (words[:1], words[1:2]), (words[1:2], words[2:3]), (words[2:3], words[3:4])]
    chain += [(words[3:4], points), (points, words[4:]), (words[4:], [ids[end]])]
    with torch.no_grad():
        for place, (before, then) in enumerate(chain):
            embedding.weight[:, place] = 0
            embedding.weight[before, place] = 8
            head.weight[:, place] = -4
            head.weight[then, place] = 4


def _as_published(folder: Path) -> Path:
    """What today's transformers writes, as the releases before wrote it: other files, other keys."""
    if (template := folder / "chat_template.jinja").is_file():
        _change(folder / "tokenizer_config.json", chat_template=template.read_text())
        template.unlink()
    if (processor := folder / "processor_config.json").is_file():
        parts = json.loads(processor.read_text())
        own = parts["feature_extractor"] | {"processor_class": parts["processor_class"]}
        (folder / "preprocessor_config.json").write_text(json.dumps(own))
        processor.unlink()
    config = json.loads((folder / "config.json").read_text())
    for section in (config, config.get("text_config", {})):
        if "rope_parameters" in section:
            section["rope_theta"] = section.pop("rope_parameters")["rope_theta"]
        if "dtype" in section:
            section["torch_dtype"] = section.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config))
    if (file := folder / "generation_config.json").is_file():
        settings = json.loads(file.read_text())
        settings.pop("_from_model_config", None)  # or loading would ignore what was changed
        file.write_text(json.dumps(settings))
    return folder


def _change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values, indent=2))
