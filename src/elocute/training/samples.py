"""What people listen to while a run goes on: the rollouts of one prompt, as rows and WAV files."""

import json
from pathlib import Path

from elocute.data.audio import save_wav
from elocute.data.files import write_atomically
from elocute.rewards.outcome import Scored
from elocute.training.experience import Experience


def write_step_samples(folder: Path, step: int, experience: Experience, group_size: int) -> None:
    """Write `samples/step-N.jsonl` and its WAVs: the first prompt's group."""
    rows = []
    for index in range(group_size):
        answer = experience.answers[index]
        audio = None
        if len(answer.utterance.waveform):
            audio = f"step-{step}/{index}.wav"
            save_wav(folder / audio, answer.utterance.waveform, answer.utterance.sample_rate)
        outcomes = {name: outcome[index] for name, outcome in experience.judged.outcomes.items()}
        rows.append(
            {
                "id": answer.example.id,
                "question_text": answer.example.question_text,
                "text": answer.utterance.text,
                "broken": answer.utterance.broken,
                "audio": audio,
                "reward": experience.judged.values[index],
                "rewards": {name: _shown(outcome) for name, outcome in outcomes.items()},
            }
        )
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(folder / f"step-{step}.jsonl", lines.encode())


def _shown(outcome) -> float | str:
    return outcome.value if isinstance(outcome, Scored) else f"{type(outcome).__name__}: {outcome.reason}"
