"""What people listen to while a run goes on: the rollouts of one prompt, as rows and WAV files."""

import json
from pathlib import Path

from elocute.data.audio import save_wav
from elocute.data.files import write_atomically
from elocute.rewards.outcome import Scored
from elocute.training.experience import Experience


def write_step_samples(folder: Path, step: int, experience: Experience, group_size: int) -> None:
    """Write `samples/step-N.jsonl` and its WAVs: the first prompt's group, or as many answers to several prompts."""
    rows, judged = [], experience.judged
    for index, answer in enumerate(experience.answers[:group_size]):
        audio = None
        if len(answer.utterance.waveform):
            audio = f"step-{step}/{index}.wav"
            save_wav(folder / audio, answer.utterance.waveform, answer.utterance.sample_rate)
        outcomes = {name: outcome[index] for name, outcome in judged.outcomes.items()} if judged else {}
        rows.append(
            {
                "id": answer.example.id,
                "question_text": answer.example.question_text,
                "text": answer.utterance.text,
                "broken": answer.utterance.broken,
                "audio": audio,
                "reward": judged.values[index] if judged else None,
                "rewards": {name: _shown(outcome) for name, outcome in outcomes.items()},
            }
        )
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(folder / f"step-{step}.jsonl", lines.encode())


def _shown(outcome) -> float | str:
    return outcome.value if isinstance(outcome, Scored) else f"{type(outcome).__name__}: {outcome.reason}"
