"""Tiny transformers folders with random weights, made on the spot."""

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Processor,
    WavLMConfig,
    WavLMForXVector,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

LETTERS = list(string.ascii_lowercase + " ")
_BERT = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=32
)  # fmt: skip

_WAV2VEC2 = dict(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=(16, 16, 16),
    conv_stride=(5, 8, 8), conv_kernel=(10, 8, 8), num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
    feat_extract_norm="layer", do_stable_layer_norm=True, num_feat_extract_layers=3,
)  # fmt: skip
_CHAT = (  # as Qwen2-Audio's, in short
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _tokenizer(**specials: str) -> PreTrainedTokenizerFast:
    tokens = ["[PAD]", "[UNK]", *LETTERS, *specials.values()]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32, **specials
    )


def bert(folder: Path) -> Path:
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(LETTERS) + 2, **_BERT)).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def classifier(folder: Path, labels: tuple[str, ...] = ("calm", "glad", "sad"), **options) -> Path:
    torch.manual_seed(0)
    names = dict(enumerate(labels))
    config = BertConfig(
        vocab_size=len(LETTERS) + 2, id2label=names, label2id={n: i for i, n in names.items()}, **_BERT, **options
    )
    model = BertForSequenceClassification(config)
    model.classifier.weight.data.mul_(50)  # so that texts differ visibly
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def causal(folder: Path) -> Path:
    """A text LM over letters; its tokens differ in likelihood."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(LETTERS) + 3, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32, max_position_embeddings=1024, initializer_range=0.5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    _tokenizer(bos_token="[BOS]").save_pretrained(folder)
    return folder


def ctc(folder: Path) -> Path:
    torch.manual_seed(0)
    folder.mkdir()
    vocabulary = folder / "letters.json"
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *string.ascii_lowercase]
    vocabulary.write_text("{" + ", ".join(f'"{t}": {i}' for i, t in enumerate(tokens)) + "}")
    tokenizer = Wav2Vec2CTCTokenizer(str(vocabulary))
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(folder)
    config = Wav2Vec2Config(vocab_size=len(tokens), pad_token_id=0, **_WAV2VEC2)
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    return folder


def whisper(folder: Path) -> Path:
    torch.manual_seed(0)
    folder.mkdir()
    vocabulary = {c: i for i, c in enumerate([*string.ascii_lowercase, "Ġ"])}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[], language=None)
    specials = ["<|startoftranscript|>", "<|en|>", "<|de|>", "<|transcribe|>", "<|translate|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": specials})
    ids = tokenizer.get_vocab()
    WhisperProcessor(WhisperFeatureExtractor(feature_size=8), tokenizer).save_pretrained(folder)
    end = ids["<|endoftext|>"]
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer), num_mel_bins=8, d_model=16, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
            max_target_positions=32, decoder_start_token_id=ids["<|startoftranscript|>"], pad_token_id=end,
            bos_token_id=end, eos_token_id=end, suppress_tokens=None, begin_suppress_tokens=None, init_std=1.0,
        )
    )  # fmt: skip
    settings = model.generation_config
    settings._from_model_config = False  # or loading would ignore the file
    settings.is_multilingual = True
    settings.lang_to_id = {"<|en|>": ids["<|en|>"], "<|de|>": ids["<|de|>"]}
    settings.task_to_id = {"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]}
    settings.no_timestamps_token_id = ids["<|notimestamps|>"]
    settings.max_length = 16
    model.save_pretrained(folder)
    return folder


def audio_classifier(folder: Path, labels: tuple[str, ...] = ("neutral", "happy", "sad"), **options) -> Path:
    """Listens to 16 kHz; what it says depends on the sound."""
    return _listener(folder, Wav2Vec2ForSequenceClassification, labels, classifier_proj_size=16, **options)


def x_vectors(folder: Path) -> Path:
    return _listener(
        folder, WavLMForXVector, ("a", "b"), WavLMConfig, tdnn_dim=(16, 16, 16), tdnn_kernel=(3, 3, 1),
        tdnn_dilation=(1, 2, 1), xvector_output_dim=8,
    )  # fmt: skip


def _listener(folder: Path, model_class, labels, config_class=Wav2Vec2Config, **options) -> Path:
    torch.manual_seed(0)
    names = dict(enumerate(labels))
    named = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    config = config_class(**_WAV2VEC2 | named | {"initializer_range": 0.3} | options)
    model_class(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return folder


def audio_llm(folder: Path) -> Path:
    """A Qwen2-Audio of a few thousand weights that reads letters."""
    torch.manual_seed(0)
    specials = ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    tokens = [*sorted(set(string.printable)), *specials]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", unk_token="?", eos_token="<|im_end|>",
        additional_special_tokens=specials[:4],
    )  # fmt: skip
    processor = Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=8), fast, chat_template=_CHAT)
    processor.save_pretrained(folder)
    config = Qwen2AudioConfig(
        audio_config=dict(
            num_mel_bins=8, d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, init_std=0.5,
        ),
        text_config=dict(
            model_type="qwen2", vocab_size=len(tokens), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, intermediate_size=32, max_position_embeddings=4096, initializer_range=0.3,
        ),
        audio_token_index=vocabulary["<|AUDIO|>"],
    )  # fmt: skip
    Qwen2AudioForConditionalGeneration(config).save_pretrained(folder)
    return folder
