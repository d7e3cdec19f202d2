"""The `continuation` suite: prompts → their first seconds → continuations → sound → what an ear hears → measures.

A judge reads and hears the prompt as far as it was heard by the model: the files it is given are cut, and the words are
those the ear heard. Everything is kept for people: prompts, continuations, transcripts and each one's numbers.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from elocute.data.audio import load_audio, save_wav
from elocute.data.cache import EncodedAudio
from elocute.data.files import write_atomically
from elocute.data.normalise import normalise
from elocute.data.rows import AUDIO_MARK, check_rows, read_rows
from elocute.data.types import Answer, AudioRef, Example, Message, Utterance
from elocute.errors import InputError, RunError
from elocute.evaluation.continuation import (
    auto_bleu_gslm,
    auto_bleu_slamkit,
    distinct,
    gen_ppl,
    gen_ppl_slamkit,
    mean_estimate,
    seq_rep,
)
from elocute.evaluation.pieces import PIECE, in_pieces
from elocute.evaluation.statistics import Estimate, share
from elocute.models import SpeechLM
from elocute.progress import Progress
from elocute.rewards.asr import Ear, hear
from elocute.rewards.outcome import Invalid, Outcome, Reward, Scored, Unavailable
from elocute.rewards.text_likelihood import TextLM
from elocute.rollout import Sampling, check_room, sample_groups, seed_of

SOUND_FILES = (".flac", ".mp3", ".ogg", ".wav")
METRICS = (
    "gen_ppl", "gen_ppl_slamkit", "auto_bleu_slamkit", "auto_bleu_gslm", "auto_bleu_gslm_geometric", "unit_seq_rep_4",
    "distinct_1", "distinct_2", "empty_transcripts", "broken_audio", "words", "units", "seconds",
)  # fmt: skip
"""What is measured of every model; judges bring their own names."""


@dataclass(frozen=True)
class Continuation:
    """One prompt as the model heard it, and what it said next.

    example: its last audio is the cut prompt, its question_text what the ear heard in it. utterance: its text is what
    the ear heard. units: the continuation's, from 0.
    """

    example: Example
    utterance: Utterance
    units: list[int]
    seed: int

    @property
    def words(self) -> list[str]:
        return normalise(self.utterance.text).split()


def read_prompts(data: Path, seconds: float, limit: int | None) -> list[Example]:
    """Rows whose last audio is the prompt, or a folder of sound files at any depth, in the order of their names."""
    if not data.is_dir():
        rows = read_rows(data, seconds)[:limit]
        check_rows(rows, _has_audio)
        return rows
    files = sorted(path for path in data.rglob("*") if path.suffix.lower() in SOUND_FILES and path.name[0] != ".")
    if not files:
        raise InputError(f"{data}: expected sound files ({', '.join(SOUND_FILES)})")
    asked = (Message("user", AUDIO_MARK),)
    return [
        Example(
            str(path.relative_to(data).with_suffix("")), asked, (AudioRef(path, seconds=seconds),), file=str(path)
        )  # fmt: skip
        for path in files[:limit]
    ]


def _has_audio(example: Example) -> None:
    if not example.audios:
        raise InputError(f"{example.where}: audios: expected the prompt's sound file")


def continue_all(
    lm: SpeechLM,
    audio: EncodedAudio,
    examples: Sequence[Example],
    ear: Ear,
    sampling: Sampling,
    seed: int,
    out: Path,
    *,
    batch: int = PIECE,
    progress: Progress = lambda *_: None,
) -> list[Continuation]:
    """One continuation of each prompt, heard; WAVs under out/prompts and out/continuations.

    A draw's seed is a function of `seed` and the prompt's id: batch size and order do not change a continuation.
    """
    prompts = [lm.encode_prompt(example, audio) for example in examples]
    lengths = {example.where: len(prompt) for example, prompt in zip(examples, prompts, strict=True)}
    check_room(lm, lengths, sampling.max_new_tokens)
    heard_prompts = _hear_prompts(examples, audio, ear, out / "prompts", progress)
    order = sorted(range(len(examples)), key=lambda index: len(prompts[index]))
    said: dict[int, tuple[Utterance, list[int], int]] = {}
    for start in range(0, len(order), batch):
        piece = order[start : start + batch]
        seeds = [[seed_of(seed, "continuation", examples[index].id)] for index in piece]
        groups = sample_groups(lm, [prompts[index] for index in piece], seeds, sampling)
        for index, [rollout] in zip(piece, groups, strict=True):
            ids = rollout.tokens.ids
            said[index] = lm.decode(ids), lm.layout.read(ids).units, rollout.seed
        progress("continue", len(said), len(examples), {})
    found = []
    transcripts = _hear("hear", [said[index][0] for index in range(len(examples))], ear, progress)
    for index, text in enumerate(transcripts):
        utterance, units, own_seed = said[index]
        found.append(Continuation(heard_prompts[index], replace(utterance, text=text), units, own_seed))
        if len(utterance.waveform):
            save_wav(out / "continuations" / f"{index}.wav", utterance.waveform, utterance.sample_rate)
    return found


def _hear_prompts(
    examples: Sequence[Example], audio: EncodedAudio, ear: Ear, folder: Path, progress: Progress
) -> list[Example]:
    """The prompts as the model hears them, as WAVs and in words: nothing that is asked later sees what comes after."""
    sounds = []
    for index, example in enumerate(examples):
        waveform, rate = _sound(example.audios[-1], audio)
        save_wav(folder / f"{index}.wav", waveform, rate)
        sounds.append(Utterance("", waveform, rate))
    texts = _hear("hear prompts", sounds, ear, progress)
    return [
        replace(
            example, question_text=text, audios=(*example.audios[:-1], AudioRef(folder / f"{index}.wav"))
        )  # fmt: skip
        for index, (example, text) in enumerate(zip(examples, texts, strict=True))
    ]


def _sound(ref: AudioRef, audio: EncodedAudio) -> tuple[np.ndarray, int]:
    if ref.key is None and ref.units is None:
        return load_audio(ref.path, seconds=ref.seconds)
    return audio.codec.decode(audio.units(ref)), audio.codec.sample_rate


def _hear(stage: str, utterances: Sequence[Utterance], ear: Ear, progress: Progress) -> list[str]:
    """What the ear hears; "" for an utterance that is no proper one."""
    nobody = Example("", ())
    proper = [index for index, one in enumerate(utterances) if not one.broken and len(one.waveform)]
    answers = [Answer(nobody, utterances[index]) for index in proper]
    heard = dict(zip(proper, in_pieces(stage, answers, lambda piece: hear(ear, piece), progress), strict=True))
    return [heard.get(index, "").strip() for index in range(len(utterances))]


# ---- measures ------------------------------------------------------------------------------------------------------


def judge(
    rewards: Sequence[Reward], continuations: Sequence[Continuation], progress: Progress = lambda *_: None
) -> dict[str, list[Outcome]]:
    """Each reward's outcomes, one a continuation, in the same order. Without a prompt to go by there is no judging."""
    known = [bool(normalise(one.example.question_text or "")) for one in continuations]
    answers = [Answer(one.example, one.utterance) for one, there in zip(continuations, known, strict=True) if there]
    outcomes = {}
    for reward in rewards:
        own = in_pieces(reward.name, answers, lambda piece, reward=reward: list(reward(piece)), progress)
        if len(own) != len(answers):
            raise RunError(f"judge {reward.name}: {len(own)} outcomes for {len(answers)} continuations")
        judged = iter(own)
        outcomes[reward.name] = [
            next(judged) if there else Unavailable("nothing was heard in the prompt") for there in known
        ]
    return outcomes


def log_probs(
    text_lm: TextLM, continuations: Sequence[Continuation], *, with_prompt: bool
) -> tuple[list[list[float]], int]:
    """log p of the tokens of each transcript, or of prompt and transcript as one text; none for an empty transcript.

    And how many texts are longer than the LM's context: only what it holds of them counts.
    """
    texts = [one.utterance.text for one in continuations]
    if with_prompt:
        texts = [text and f"{one.example.question_text} {text}" for one, text in zip(continuations, texts, strict=True)]
    rows = text_lm.log_probs([""] * len(texts), texts, whole=True)
    cut = sum(len(row) < text_lm.count(text) for row, text in zip(rows, texts, strict=True))
    return [row.tolist() for row in rows], cut


def measure(
    continuations: Sequence[Continuation],
    outcomes: dict[str, list[Outcome]],
    alone: Sequence[Sequence[float]] | None,
    with_prompt: Sequence[Sequence[float]] | None,
) -> dict[str, Estimate]:
    """Every metric with its interval. outcomes: as from `judge`; alone, with_prompt: rows of `log_probs`, or None.

    What is of words is over transcripts that have some: an empty one repeats nothing and must not improve a mean.
    """
    words = [one.words for one in continuations if one.words]
    found = {
        "empty_transcripts": share([not one.words for one in continuations]),
        "broken_audio": share([one.utterance.broken is not None for one in continuations]),
        "auto_bleu_slamkit": mean_estimate([auto_bleu_slamkit(own) for own in words]),
        "auto_bleu_gslm": mean_estimate([auto_bleu_gslm(own) for own in words]),
        "auto_bleu_gslm_geometric": mean_estimate([auto_bleu_gslm(own, mean="geometric") for own in words]),
        "unit_seq_rep_4": mean_estimate([seq_rep(one.units, 4) for one in continuations]),
        "distinct_1": distinct(words, 1),
        "distinct_2": distinct(words, 2),
        "words": mean_estimate([len(one.words) for one in continuations]),
        "units": mean_estimate([len(one.units) for one in continuations]),
        "seconds": mean_estimate([one.utterance.seconds for one in continuations]),
    }
    if alone is not None and with_prompt is not None:
        found |= {"gen_ppl": gen_ppl(alone), "gen_ppl_slamkit": gen_ppl_slamkit(with_prompt)}
    for name, own in outcomes.items():
        found[name] = mean_estimate([outcome.value for outcome in own if isinstance(outcome, Scored)])
        found[f"{name}_unscored"] = share([not isinstance(outcome, Scored) for outcome in own])
    return found


def why_unscored(outcomes: dict[str, list[Outcome]]) -> dict[str, dict[str, int]]:
    """Of each judge: reason → how often, the sample's fault ("invalid: …") told from the judge's ("unavailable: …")."""

    def reason(outcome: Outcome) -> str:
        return f"{'invalid' if isinstance(outcome, Invalid) else 'unavailable'}: {outcome.reason}"

    return {
        name: dict(Counter(reason(outcome) for outcome in own if not isinstance(outcome, Scored)).most_common())
        for name, own in outcomes.items()
    }


def write_continuations(
    path: Path,
    continuations: Sequence[Continuation],
    outcomes: dict[str, list[Outcome]],
    alone: Sequence[Sequence[float]] | None,
) -> None:
    """One JSON line a continuation: what was heard and said, where its sound lies, and its own numbers."""
    lines = []
    for index, one in enumerate(continuations):
        nll = None if alone is None or not alone[index] else -sum(alone[index]) / len(alone[index])
        lines.append(
            {
                "id": one.example.id,
                "prompt_audio": f"prompts/{index}.wav",
                "prompt_heard": one.example.question_text,
                "audio": f"continuations/{index}.wav" if len(one.utterance.waveform) else None,
                "heard": one.utterance.text,
                "units": one.units,
                "seconds": one.utterance.seconds,
                "broken": one.utterance.broken,
                "seed": one.seed,
                "auto_bleu_slamkit": auto_bleu_slamkit(one.words),
                "token_nll": nll,
                "judged": {name: _outcome(own[index]) for name, own in outcomes.items()},
            }
        )
    write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


def _outcome(outcome: Outcome) -> dict:
    if isinstance(outcome, Scored):
        return {"kind": "scored", "score": outcome.value, "detail": dict(outcome.detail)}
    kind = "invalid" if isinstance(outcome, Invalid) else "unavailable"
    return {"kind": kind, "score": None, "reason": outcome.reason}
