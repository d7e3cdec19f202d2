"""A run folder as training leaves it, with made-up but plausible numbers and short tones for voices."""

import json
import math
from pathlib import Path

import numpy as np

from elocute.data.audio import save_wav
from elocute.evaluation.statistics import Estimate, wilson

QUESTIONS = [
    "What is three plus four?",
    "Which is larger, nine or six?",
    "What is the opposite of cold?",
    "What comes after Tuesday?",
    "How do you spell cat?",
    "What is eight minus five?",
]
ANSWERS = [
    "It is seven.",
    "Nine is larger.",
    "The opposite of cold is hot.",
    "After Tuesday comes Wednesday.",
    "C, A, T.",
    "It is three.",
]
RATE = 16_000


def write_run(folder: Path, *, steps: int = 80, answers: int = 60, finished: bool = True, sounds: int = 16) -> Path:
    """Write a run of `steps` steps and `answers` evaluated answers, `sounds` of them with WAVs; returns `folder`."""
    generator = np.random.default_rng(7)
    (folder / "samples").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(
        f"seed: 3\nrun_dir: runs/fake\nsteps: {steps}\nmodel: starter/model\n"
        "rollout:\n  group_size: 8\n  temperature: 0.9\noptim:\n  lr: 0.0005\n"
    )
    environment = {
        "command": "elocute train recipes/starter/wavalign.yaml",
        "started": "2026-05-04T10:11:12+00:00",
        "device": "CPU",
        "versions": {"torch": "2.13.0"},
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    write_lines(folder / "metrics.jsonl", [metrics_row(step, steps, generator) for step in range(1, steps + 1)])
    evaluation: dict = {"seed": 3, "ear": "PocketSphinx"}
    for moment in ("before", "after")[: 2 if finished else 1]:
        rows = answer_rows(folder, moment, answers, sounds, generator)
        write_lines(folder / "samples" / f"{moment}.jsonl", rows)
        evaluation[moment] = summary(rows)
        for half, part in enumerate(("easy", "hard")):
            evaluation.setdefault("by_difficulty", {}).setdefault(moment, {})[part] = summary(rows[half::2])
    (folder / "eval.json").write_text(json.dumps(evaluation))
    for step in range(10, steps + 1, 10):
        write_lines(folder / "samples" / f"step-{step}.jsonl", rollout_rows(folder, step, steps, generator))
    return folder


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def metrics_row(step: int, steps: int, generator) -> dict:
    """One line of metrics.jsonl: reward rises, its spread shrinks and λ with it."""
    way = 1 - math.exp(-3 * step / steps)
    noise = lambda scale: float(generator.normal(0, scale))  # noqa: E731
    mean, std = 0.42 + 0.33 * way + noise(0.04), 0.36 - 0.14 * way + noise(0.02)
    information = min(1.0, std**2 / 0.25)
    invalid = int(generator.poisson(1.5 * (1 - way)))
    unavailable = int(step == steps // 3) * 2
    pg, sft = noise(0.05) - 0.02, 1.9 - 0.6 * way + noise(0.05)
    raw = 0.8 * information * (0.6 + 0.4 * way)
    seconds = {"rollout": 0.61 + abs(noise(0.05)), "decode": 0.12, "reward": 0.3 + abs(noise(0.04)), "update": 0.35}
    return {
        "step": step,
        "reward/mean": mean,
        "reward/std": std,
        "reward/max": min(1.0, mean + 1.4 * std),
        "reward/exact": mean - 0.08,
        "reward/faithful": min(1.0, mean + 0.17),
        "lambda": 0.9 * raw + 0.03,
        "lambda/raw": raw,
        "gate/information": information,
        "gate/reward": 0.6 + 0.4 * way,
        "loss/total": pg + sft + 0.02,
        "loss/pg": pg,
        "loss/sft": sft,
        "loss/kl_text": 0.012 * way,
        "loss/kl_speech": 0.004,
        "kl/text": 0.05 * way + abs(noise(0.003)),
        "kl/speech": 0.02 * way + abs(noise(0.002)),
        "nll/text": 0.9 - 0.3 * way,
        "nll/speech": 2.3 - 0.2 * way,
        "entropy/text": 0.8 - 0.35 * way + noise(0.02),
        "entropy/speech": 2.4 - 0.1 * way + noise(0.03),
        "outcomes/scored": 32 - invalid - unavailable,
        "outcomes/invalid": invalid,
        "outcomes/unavailable": unavailable,
        "rollout/truncated": invalid,
        "rollout/no_text": 0,
        "rollout/tokens_per_s": 3900 + noise(150),
        "sampler/mismatch": abs(noise(2e-7)),
        "pg/clip_fraction": 0.0,
        "pg/tokens": 260 + int(generator.integers(40)),
        "grad_norm": 0.7 + abs(noise(0.2)),
        "lr": 5e-4 * (0.5 + 0.5 * math.cos(math.pi * step / steps)),
        **{f"seconds/{name}": value for name, value in seconds.items()},
        "seconds/checkpoint": 0.2 if step % 20 == 0 else None,
        "seconds/total": sum(seconds.values()) + 0.05,
    }


def answer_rows(folder: Path, moment: str, count: int, sounds: int, generator) -> list[dict]:
    """Evaluated answers: 45 % right before, 70 % after."""
    rows = []
    for index in range(count):
        right = bool(generator.random() < (0.45 if moment == "before" else 0.7))
        heard = right and bool(generator.random() < 0.92)
        broken = "no end" if generator.random() < 0.03 else None
        text = ANSWERS[index % 6] if right else "It is two."
        question = answer = None
        if index < sounds:
            question, answer = f"questions/{index}.wav", f"{moment}/{index}.wav"
            save_tone(folder / "samples" / question, 180 + 5 * index)
            save_tone(folder / "samples" / answer, 120 + 5 * index)
        rows.append(
            {
                "id": f"q{index}",
                "question_text": QUESTIONS[index % 6],
                "reference": ANSWERS[index % 6],
                "question_audio": question,
                "text": text,
                "audio": answer,
                "heard": text.lower().strip("."),
                "correct_text": right,
                "correct_speech": heard and broken is None,
                "broken": broken,
            }
        )
    return rows


def rollout_rows(folder: Path, step: int, steps: int, generator) -> list[dict]:
    rows = []
    for index in range(8):
        right = bool(generator.random() < 0.4 + 0.4 * step / steps)
        audio = f"step-{step}/{index}.wav" if index < 4 else None
        if audio:
            save_tone(folder / "samples" / audio, 100 + 20 * index)
        rows.append(
            {
                "id": "q1",
                "question_text": QUESTIONS[1],
                "text": ANSWERS[1] if right else "Six is larger.",
                "audio": audio,
                "broken": None,
                "reward": 0.95 if right else 0.2,
                "rewards": {
                    "exact": float(right),
                    "faithful": 0.9 if index != 3 else "Unavailable: no reply after 30 s",
                },
            }
        )
    return rows


def save_tone(path: Path, hertz: float, seconds: float = 0.8) -> None:
    time = np.arange(int(seconds * RATE)) / RATE
    save_wav(path, (0.3 * np.sin(2 * np.pi * hertz * time) * np.sin(np.pi * time / seconds)).astype(np.float32), RATE)


def summary(rows: list[dict]) -> dict:
    """The four metrics of eval.json."""

    def share(hits: list[bool]) -> dict:
        return Estimate(sum(hits) / len(hits), len(hits), wilson(sum(hits), len(hits))).to_json()

    return {
        "answer_accuracy_text": share([row["correct_text"] for row in rows]),
        "answer_accuracy_speech": share([row["correct_speech"] for row in rows]),
        "speech_wer": {"value": 0.063, "n": len(rows), "ci95": [0.041, 0.088]},
        "broken_audio": share([row["broken"] is not None for row in rows]),
    }
