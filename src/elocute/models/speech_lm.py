"""What all speech LMs here are: a causal LM of transformers over a vocabulary with speech units, and a codec."""

import copy
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from elocute.data.audio import load_audio
from elocute.data.cache import EncodedAudio
from elocute.data.files import read_json
from elocute.data.rows import without_marks
from elocute.data.shards import INDEX, SINGLE, Shards
from elocute.data.types import Answer, AudioRef, Example, Utterance
from elocute.errors import InputError, naming
from elocute.models import lean, one_stream
from elocute.models.batch import Batch, States
from elocute.models.layout import Layout, Tokens
from elocute.speech import Codec, decode_all
from elocute.speech.units import BrokenUnits

KINDS = ("interleaved", "units", "tts", "kimi_audio", "vita_audio", "minicpm_o", "csm", "moshi", "qwen2_5_omni")
PUBLISHED = {
    "CsmForConditionalGeneration": "csm",
    "MoonshotKimiaForCausalLM": "kimi_audio",
    "MiniCPMO": "minicpm_o",
    "MoshiForConditionalGeneration": "moshi",
    "Qwen2MTPForCausalLM": "vita_audio",
    "Qwen2_5OmniForConditionalGeneration": "qwen2_5_omni",
    "Qwen2_5OmniModel": "qwen2_5_omni",
    "Qwen2MTPSenseVoiceForCausalLM": "vita_audio",
}
"""Architectures of published folders that need no elocute.json, and their kinds."""
SLAMKIT = "speech_language_model"
_TWIST = ("opt", "llama")
_SPARE = re.compile(r"(^|\.)(rotary_emb\.inv_freq|decoder\.version)$")
"""What old checkpoints hold beside the weights: computed buffers, OPT's mark of its version."""


class SpeechLM:
    """The network of a speech LM, as training and sampling use it.

    Each kind adds what its tokens mean: `encode_prompt`, `_encode_answer`, `save`; what writes has a `tokenizer`.

    model: the network (may be wrapped by peft); layout: what an answer's tokens are; codec (waveform ⇄ units);
    settings: its elocute.json. compute: the type its matrix products are done in, None: that of its weights.
    divided: whether processes have its `layers` in parts; then each pass is to go back through all of them, too.
    """

    reads_aloud, takes_questions = False, True
    """What it can be asked for. What reads aloud (models/reading.py) has a `template`, which `load_template` gives of a
    folder, without the weights."""

    apart: Sequence[str] = ()
    """How names of weights begin that lie in the folder and that its network does not train: of what hears or sees."""

    def __init__(self, model, layout: Layout, codec: Codec, settings: dict):
        self.model, self.layout, self.codec, self.settings = model, layout, codec, settings
        self.compute: torch.dtype | None = None
        self.divided = False

    def plain_model(self):
        """The network without an adapter: LoRA weights merged into a copy."""
        if not hasattr(self.model, "peft_config"):
            return self.model
        return copy.deepcopy(self.model).merge_and_unload()

    def core(self):
        """The transformers model itself; with peft it carries the adapter's layers."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    def trunk(self):
        """Everything below the vocabulary head: ids → hidden states."""
        return self.core().base_model

    def layers(self) -> Sequence[torch.nn.Module]:
        """Those that every pass runs, in this order: what processes may divide among themselves."""
        trunk = self.trunk()
        return getattr(trunk, "decoder", trunk).layers

    @property
    def context(self) -> int | None:
        """The most tokens that a prompt and its answer may have together; None where the config does not say."""
        return getattr(self.core().config, "max_position_embeddings", None)

    @property
    def longest_answer(self) -> int | None:
        """The most steps of a stage, whatever the prompt; None: there is no limit but the context."""
        return None

    def check_length(self, what: str, tokens: int) -> None:
        """InputError, about `what`, when so many tokens do not fit into the context."""
        if self.context is not None and tokens > self.context:
            raise InputError(f"{what}: too long: at least {tokens} tokens, the model's context holds {self.context}")

    def check_fits(self, what: str, prompt, answer: Tokens) -> None:
        """InputError, about `what`, when an answer, each of its stages alone, does not fit into the context."""
        written = int(answer.text.sum()) if len(self.streams) > 1 else 0
        self.check_length(what, len(prompt) + max(written, (len(answer) - written) // self.streams[-1]))

    def encode_target(self, example: Example, audio: EncodedAudio) -> Tokens:
        """The row's supervised answer, laid out. InputError when the row has none or it does not fit the layout."""
        return self._encode(example, "sft_target", example.target_text, example.target_audio, audio)

    def encode_rejected(self, example: Example, audio: EncodedAudio) -> Tokens:
        """The row's rejected answer, laid out. InputError when the row has none or it does not fit the layout."""
        return self._encode(example, "rejected", example.rejected_text, example.rejected_audio, audio)

    def _encode(
        self, example: Example, name: str, text: str | None, ref: AudioRef | None, audio: EncodedAudio
    ) -> Tokens:
        """An answer as it was sampled, if the row has its tokens; else its text and its speech, laid out.

        name: of the row's fields, less `_text` and `_audio`.
        """
        if ref is None or ref.tokens is None:
            return self._encode_answer(example, name, text, ref, audio)
        units = units_of(example, f"{name}_units", ref, audio)
        answer = self._replayed(self._begun(example), np.ravel(ref.tokens).tolist())
        if answer is None or answer.broken or not self._is(answer, text, units):
            raise InputError(
                f"{example.where}: {name}_tokens: expected a whole answer of this model, with the row's text and "
                "units; without this field they are encoded anew"
            )
        return answer.tokens()

    def _begun(self, example: Example):
        """An answer to a row, of which nothing has come yet."""
        return self.layout.cursor()

    def _replayed(self, answer, cells: list[int]):
        """An answer grown from its cells; None where they are not what is forced, or what no head can say."""
        sizes, end = [head.weight.shape[0] for head in self.heads()], 0
        while end < len(cells):
            if answer.done:
                return None
            forced, known = answer.forced(), sizes[sum(self.streams[: answer.stage]) :]
            step, end = cells[end : end + len(forced)], end + len(forced)
            fits = (cell < size and must in (None, cell) for cell, must, size in zip(step, forced, known, strict=False))
            if len(step) < len(forced) or not all(fits):
                return None
            answer.push(*step)
        answer.close()
        return answer

    def _is(self, answer, text: str | None, units: np.ndarray) -> bool:
        """Whether it says what a row says. Where nothing was written, the row's text may be what was heard."""
        wrote = without_marks(self.written(answer.text_ids))
        return np.array_equal(answer.units, units) and (not wrote or wrote == (text or "").strip())

    def answer(self, example: Example, ids) -> Answer:
        """A row and what was said to it, as rewards judge it."""
        [answer] = self.answers([example], [ids])
        return answer

    def answers(self, examples: Sequence[Example], answers: Sequence) -> list[Answer]:
        """The same for many rows and as many answers' ids, decoded together."""
        return [self._judged(*of) for of in zip(examples, self.decode_all(answers), strict=True)]

    def _judged(self, example: Example, utterance: Utterance) -> Answer:
        return Answer(example, utterance)

    def decode(self, ids) -> Utterance:
        """One answer's ids → what it wrote and the sound of what it said (the codec's true sample rate)."""
        [utterance] = self.decode_all([ids])
        return utterance

    def decode_all(self, answers: Sequence) -> list[Utterance]:
        """The same for many answers' ids."""
        cursors = [self.layout.read(ids) for ids in answers]
        for cursor in cursors:
            cursor.close()
        sounds = decode_all(self.codec, [cursor.units for cursor in cursors])
        return [self._utterance(cursor, sound) for cursor, sound in zip(cursors, sounds, strict=True)]

    def written(self, text_ids: Sequence[int]) -> str:
        """What text an answer's `text_ids` are; a textless model's are none."""
        return self.tokenizer.decode(text_ids).strip() if len(text_ids) else ""

    def _utterance(self, cursor, sound: np.ndarray | BrokenUnits) -> Utterance:
        broken, unit = cursor.broken, None
        if isinstance(sound, BrokenUnits):
            if not broken:
                broken, unit = str(sound), sound.unit
            sound = np.zeros(0, dtype=np.float32)
        if not broken and len(sound) == 0:
            broken = "empty audio"
        return Utterance(self.written(cursor.text_ids), sound, self.codec.sample_rate, broken, unit)

    def hidden(self, **inputs):
        """Run the trunk: (hidden states [B, T, D] in the head's type, keys and values)."""
        with self.computing():
            out = self.trunk()(**inputs)
        return out.last_hidden_state.to(self.head().weight.dtype), out.past_key_values

    def computing(self) -> torch.autocast:
        """Inside, matrix products are done in `compute`."""
        return torch.autocast(self.head().weight.device.type, self.compute, enabled=self.compute is not None)

    def idle(self, parameter: str) -> bool:
        """Whether no answer depends on the parameter of this name, so that nothing can train it."""
        return False

    def prompt_inputs(self, prompts: Sequence, device) -> dict[str, torch.Tensor]:
        """Prompts on the right of padding, as the network takes them: `input_ids` or `inputs_embeds`, the mask."""
        ids, mask = one_stream.padded(prompts, device)
        return {"input_ids": ids, "attention_mask": mask}

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """An answer's inputs as the network takes them beside a prompt of embeddings."""
        return self.core().get_input_embeddings()(ids)

    def head(self) -> torch.nn.Module:
        """The vocabulary head, one linear layer."""
        return self.core().get_output_embeddings()

    streams: Sequence[int] = (1,)
    """The cells of a step, for each stage of an answer."""

    temperature: float | Sequence[float] = 0.7
    """What it is sampled at where nobody says; one for each of its heads where they differ."""

    def temperatures(self, said: float | Sequence[float] | None) -> list[float]:
        """Of each head, of one number, of one for each or, None, of the model's own. InputError for more or fewer."""
        said, heads = self.temperature if said is None else said, sum(self.streams)
        each = [said] * heads if isinstance(said, int | float) else list(said)
        if len(each) != heads:
            raise InputError(
                f"temperature: expected one number or {heads}, one for each of the model's heads, got {len(each)}"
            )
        return each

    def cursor(self, prompt):
        """An answer to a prompt that has not begun."""
        return self.layout.cursor()

    def heads(self) -> list[torch.nn.Module]:
        """All that says something of an answer's cells, stage by stage, stream by stream."""
        return [self.head()]

    def states(self, batch: Batch, *, share_prompts: bool) -> list[States]:
        """What predicts a batch's selected cells, head by head as in `heads`; the last ones may lack."""
        return one_stream.states(self, batch, share_prompts=share_prompts)

    def decoders(self, prompts: Sequence, group_size: int, cursors: Sequence) -> Iterator[one_stream.Decoder]:
        """What grows `group_size` answers to each prompt, a stage after the other; the next one is asked for when the
        last has done its part. cursors: the answers', prompt by prompt."""
        lean_does = self.compute is None and lean.fits(self.trunk())
        yield (lean if lean_does else one_stream).Decoder(self, prompts, group_size)

    def lora_modules(self, targets: Sequence[str]) -> list[str]:
        """Where LoRA goes, as peft takes it: modules whose names end so."""
        return list(targets)

    def save_beside(self, folder: Path, **files: str) -> None:
        """Write what is not the network: the codec and elocute.json, which also names `files`."""
        self.codec.save(folder / "codec")
        (folder / "elocute.json").write_text(json.dumps(self.settings | {"codec": "codec"} | files, indent=2) + "\n")


def load_network(folder: Path, dtype: torch.dtype | str, network_class=AutoModelForCausalLM, **how):
    """A folder's weights as a causal LM, or as another of transformers' networks, to which `how` goes.

    InputError unless every weight is there and, but for `_SPARE`, no other.
    """
    check_weights(folder)
    try:
        network, found = network_class.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True, **how
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder}: not a model that transformers can load: {reason}") from error
    if found["missing_keys"]:
        raise InputError(f"{folder}: the weights lack {sorted(found['missing_keys'])[0]}")
    if strange := sorted(key for key in found["unexpected_keys"] if not _SPARE.search(key)):
        raise InputError(f"{folder}: the weights hold {strange[0]}, for which the model of config.json has no place")
    return network


def check_weights(folder: Path) -> None:
    """InputError for shards that are missing or cut off, before anything is loaded; nothing but headers is read."""
    binaries = [folder / "pytorch_model.bin", folder / "pytorch_model.bin.index.json"]
    if any((folder / name).is_file() for name in (SINGLE, INDEX)) or not any(map(Path.is_file, binaries)):
        Shards.open(folder)
    elif not binaries[0].is_file():
        said = read_json(binaries[1], "the index of a model's shards").get("weight_map")
        for name in sorted(set(said.values())) if isinstance(said, dict) else ():
            if not (folder / str(name)).is_file():
                raise InputError(f"{folder / str(name)}: missing, {binaries[1].name} names it")


def units_of(example: Example, field: str, ref: AudioRef, audio: EncodedAudio) -> np.ndarray:
    """The units of one of a row's recordings; what is wrong with it names the row and the field."""
    try:
        with naming(f"{example.where}: {field}: {ref}"):
            return audio.units(ref)
    except InputError as error:
        raise InputError(f"{example.where}: {field}: {error}") from error


def _published_kind(config: Path) -> str | None:
    """The kind of a published folder by its config.json: one of PUBLISHED, or a unit LM.

    TWIST's types are those of text LMs; the key `offset`, where its units begin, is TWIST's alone.
    """
    try:
        said = json.loads(config.read_text())
        kind = said.get("model_type")
        if kind == SLAMKIT or kind in _TWIST and type(said.get("offset")) is int:
            return "units"
        [architecture] = said["architectures"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return PUBLISHED.get(architecture)


def beside(folder: Path, key: str, name: str) -> Path:
    """A folder that a published model needs: where `key` of elocute.json says, else `name` in its folder or beside it.

    InputError when there is none.
    """
    said = read_settings(folder).get(key)
    places = [folder / said] if said else [folder / name, folder.resolve().parent / name]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise InputError(f"{places[-1]}: expected {name} there, with which {folder.name} speaks and hears")
    return found


def check_answer(example: Example, name: str, text: str | None, ref: AudioRef | None, *, ends: bool = True) -> None:
    """InputError unless a row's answer has text and speech. name: of its fields, less `_text`, `_audio`.

    ends: whether the model's answers have an end, so that one which was cut before it cannot be learnt.
    """
    for part, given in (("text", (text or "").strip()), ("audio", ref)):
        if not given:
            raise InputError(f"{example.where}: {name}_{part}: expected, it always writes and speaks")
    if ends and ref.cut:
        raise InputError(f"{example.where}: {name}_audio: it was cut before its end; this model's answers must end")


def sound_of(example: Example, ref: AudioRef) -> tuple[np.ndarray, int]:
    """A question's recording itself: float32 [samples], its rate. InputError, naming the row, where there are units."""
    if ref.key is not None or ref.units is not None:
        raise InputError(f"{example.where}: audios: {ref}: expected a sound file, this model hears more than units")
    with naming(f"{example.where}: audios: {ref}"):
        return load_audio(ref.path, seconds=ref.seconds)


def read_settings(folder: Path) -> dict:
    """Read `elocute.json`; the kind of model that it names is known, the rest is for that model to check.

    A published folder need not have one.
    """
    file = folder / "elocute.json"
    if not folder.is_dir():
        raise InputError(f"{folder}: model: expected a folder, there is none")
    _refuse_adapter(folder / "adapter_config.json")
    if not file.is_file() and (kind := _published_kind(folder / "config.json")):
        return {"kind": kind}
    if not file.is_file():
        raise InputError(f"{file}: expected beside the model's config.json, it says what the model's tokens are")
    try:
        settings = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{file}:{error.lineno}: not JSON: {error.msg}") from error
    if not isinstance(settings, dict):
        raise InputError(f"{file}: expected a JSON object")
    if (kind := settings.get("kind", "interleaved")) not in KINDS:
        raise InputError(f"{file}: kind: expected {', '.join(KINDS[:-1])} or {KINDS[-1]}, got {kind!r}")
    return settings


def _refuse_adapter(file: Path) -> None:
    """InputError where peft says that an adapter lies: some loaders would add it, whatever its base was, others not."""
    if file.is_file():
        base = read_json(file, "the config of a peft adapter").get("base_model_name_or_path")
        raise InputError(
            f"{file}: model: expected a whole model, this is an adapter trained for {base}: merge the two with peft's "
            "merge_and_unload, and take away this file"
        )
