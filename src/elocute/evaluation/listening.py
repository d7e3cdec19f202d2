"""Evaluated answers as files people look at and listen to: one JSON line a question, WAVs of the first ones."""

import json
from collections.abc import Sequence
from pathlib import Path

from elocute.data.audio import load_audio, save_wav
from elocute.data.cache import EncodedAudio
from elocute.data.files import write_atomically
from elocute.data.types import AudioRef
from elocute.evaluation.spoken_qa import Row


def write_answers(folder: Path, name: str, rows: Sequence[Row], audio: EncodedAudio, *, sounds: int) -> None:
    """Write `folder/name.jsonl`, and question and answer WAVs of the first `sounds` rows under `folder/`."""
    lines = []
    for index, row in enumerate(rows):
        question = answer = None
        if index < sounds:
            if row.example.audios:
                question = f"questions/{index}.wav"
                _write_question(folder / question, row.example.audios[-1], audio)
            if len(row.utterance.waveform):
                answer = f"{name}/{index}.wav"
                save_wav(folder / answer, row.utterance.waveform, row.utterance.sample_rate)
        lines.append(
            {
                "id": row.example.id,
                "question_text": row.example.question_text,
                "reference": row.example.columns.get("answer"),
                "question_audio": question,
                "text": row.utterance.text,
                "audio": answer,
                "heard": row.heard,
                "correct_text": row.correct_text,
                "correct_speech": row.correct_speech,
                "broken": row.utterance.broken,
            }
        )
    write_atomically(folder / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())


def _write_question(path: Path, ref: AudioRef, audio: EncodedAudio) -> None:
    if ref.key is None:
        save_wav(path, *load_audio(ref.path, seconds=ref.seconds))
    else:  # only its units are at hand: what is heard is what the model heard
        save_wav(path, audio.codec.decode(audio.units(ref)), audio.codec.sample_rate)
