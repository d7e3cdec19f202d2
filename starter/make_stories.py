"""Speaks the stories and encodes them: `python -m starter.make_stories`.

speak    every sentence of the stories → starter/build/sentences/joe/; what is there already is kept
encode   sentences' units → starter/build/sentences.safetensors, for the unit LM's training (not shipped);
         the first seconds of dev and test stories and what follows → starter/stories/, for post-training (shipped)
"""

import argparse
import re
from functools import cache
from pathlib import Path

import numpy as np

from elocute.data.audio import load_audio, save_wav
from elocute.data.files import write_atomically
from elocute.data.units import write_units
from elocute.rewards.pocketsphinx_ear import make_decoder
from elocute.speech.starter_units import StarterUnits
from starter.make_data import run_all, write_rows
from starter.stories import Story, draw_stories, sentences_of
from starter.takes import SAMPLE_RATE
from starter.telling import record, recording, told

HERE = Path(__file__).parent
STORIES = {"train": 6000, "dev": 400, "test": 300}
PROMPT_SECONDS = 3.04
"""Three seconds in whole blocks of the codec."""
SHOWN_WAVS = 4


def drawn() -> dict[str, list[Story]]:
    """The stories of each split."""
    return {split: draw_stories(split, count) for split, count in STORIES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("speak", "encode", "all"), default="all")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--units", type=Path, default=HERE / "units")
    options = parser.parse_args()
    stories = drawn()
    texts = {split: sentences_of(own, wrong_endings=split != "train") for split, own in stories.items()}
    if options.stage in ("speak", "all"):
        record([text for own in texts.values() for text in own], options.processes)
        heard = "".join(f"{text.lower().rstrip('.')}\n" for text in sorted(texts["train"]))
        write_atomically(HERE / "stories" / "sentences.txt", heard.encode())
    if options.stage in ("encode", "all"):
        codec = StarterUnits.load(options.units)
        encode_sentences(texts, codec, options.units, options.processes)
        encode_prompts({split: stories[split] for split in ("dev", "test")}, codec)


def encode_sentences(texts: dict[str, list[str]], codec: StarterUnits, folder: Path, processes: int) -> None:
    """Units of each sentence with its pause, for the LM's training and its held-out measure."""
    wanted = list(dict.fromkeys(text for split in ("train", "dev") for text in texts[split]))
    units = run_all(_encode, [(folder, text) for text in wanted], processes, "sentences encoded")
    named = {recording(text).stem: values for text, values in zip(wanted, units, strict=True)}
    write_units(HERE / "build" / "sentences.safetensors", named, codec.digest, codec="starter units")


def _encode(job: tuple[Path, str]) -> np.ndarray:
    folder, text = job
    return _loaded(folder).encode(*load_audio(recording(text)))


@cache
def _loaded(folder: Path) -> StarterUnits:
    return StarterUnits.load(folder)


def encode_prompts(stories: dict[str, list[Story]], codec: StarterUnits) -> None:
    """Rows for post-training: the prompt's units and words, and how the story goes on."""
    folder, cut = HERE / "stories", round(PROMPT_SECONDS * SAMPLE_RATE)
    aligner = make_decoder({})
    prompts, rests = {}, {}
    for split, own in stories.items():
        rows = []
        for story in own:
            waveform = told([*story.sentences, story.ending])
            prompts[story.id] = codec.encode(waveform[:cut], SAMPLE_RATE)
            rests[story.id] = codec.encode(waveform[cut:], SAMPLE_RATE)
            rows.append(
                {
                    "id": story.id,
                    "messages": [{"role": "user", "content": "<|audio|>"}],
                    "audios": [f"prompts.safetensors#{story.id}"],
                    "question_text": words_before(PROMPT_SECONDS, waveform, story.text, aligner),
                    "sft_target_audio": f"continuations.safetensors#{story.id}",
                    "story": story.text,
                    "topic": story.topic,
                }
            )
        write_rows(folder / f"{split}.jsonl", rows)
        print(f"{folder / split}.jsonl: {len(rows)} rows", flush=True)
    for name, units in (("prompts", prompts), ("continuations", rests)):
        write_units(folder / f"{name}.safetensors", units, codec.digest, codec="starter units")
    for number, story in enumerate(stories["test"][:SHOWN_WAVS]):
        save_wav(folder / f"prompt-{number}.wav", told([*story.sentences, story.ending])[:cut], SAMPLE_RATE)


def words_before(seconds: float, waveform: np.ndarray, text: str, aligner) -> str:
    """The words of `text` that are said to their end by then, by forced alignment."""
    words = re.findall(r"[A-Za-z']+", text)
    aligner.set_align_text(" ".join(words).lower())
    aligner.start_utt()
    aligner.process_raw((np.clip(waveform, -1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
    aligner.end_utt()
    ends = [part.end_frame for part in aligner.seg() if part.word[0].isalpha()]
    said = sum(end <= 100 * seconds for end in ends)  # frames of 10 ms
    if said == len(ends) < len(words):  # the aligner may lose the last words, which is all the same behind the cut
        raise ValueError(f"{len(words)} words, {len(ends)} aligned: {text}")
    return " ".join(words[:said])


if __name__ == "__main__":
    main()
