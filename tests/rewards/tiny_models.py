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
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
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
    config = Wav2Vec2Config(
        vocab_size=len(tokens), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        conv_dim=(16, 16, 16), conv_stride=(5, 8, 8), conv_kernel=(10, 8, 8), num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2, feat_extract_norm="layer", do_stable_layer_norm=True,
        num_feat_extract_layers=3, pad_token_id=0,
    )  # fmt: skip
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
