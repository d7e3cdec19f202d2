"""Small likelihood suites in the official layouts: `python -m starter.make_suites --out starter/build/suites`.

    zerospeech2021/lexical/dev     words of the stories, and non-words: a word with one letter changed
    zerospeech2021/syntactic/dev   sentences of held-out stories, and the same with their grammar broken
    storycloze/{tSC,sSC}           held-out stories with the right ending and a wrong one: of another topic (tSC), of
                                   another plot of the same topic (sSC)
    salmon/{speaker,gender}_consistency   stories told by one voice, and by two
    prompts/                       held-out stories, to be continued after their first seconds

Everything is said by joe but the consistency suites, where another voice tells half of the right ones too.
"""

import argparse
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
from pocketsphinx import get_model_path

from elocute.data.audio import save_wav
from elocute.evaluation.write_suites import write_gold_suite, write_salmon_part, write_storycloze
from starter.stories import BOYS, GIRLS, Story, draw_stories, sentences_of, vocabulary
from starter.takes import SAMPLE_RATE
from starter.telling import STORYTELLER, record, recording, told
from starter.voices import phonemes

WORDS, SENTENCES, STORIES, VOICED = 200, 60, 300, 60
"""Words; sentences of each kind of error; stories; stories of each consistency suite."""
OTHERS = {"speaker_consistency": "us-man", "gender_consistency": "us-woman"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("build") / "suites")
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    draw = Random("suites")
    stories = draw_stories("test", STORIES)
    words, broken = word_pairs(draw), sentence_pairs(stories, draw)
    texts = [text for text, _ in (*word_rows(words), *sentence_rows(broken))]
    texts += sentences_of(stories, wrong_endings=True)
    record(texts, asked.processes)
    for voice in OTHERS.values():
        record(sentences_of(stories[:VOICED]), asked.processes, voice)

    for task, rows in (("lexical", word_rows(words)), ("syntactic", sentence_rows(broken))):
        recordings = [(recording(text), row) for text, row in rows]
        write_gold_suite(asked.out / "zerospeech2021" / task / "dev", recordings)
    with tempfile.TemporaryDirectory() as folder:
        write_stories(stories, Path(folder), asked.out)


def word_rows(pairs: list[tuple[str, str]]) -> list[tuple[str, dict]]:
    """What is said, and its row of sWUGGY's gold table. No frequency: that is a word's count in LibriSpeech."""
    return [
        (f"{word.capitalize()}.", _gold(id, correct) | {"word": word, "frequency": ""})
        for id, pair in enumerate(pairs)
        for correct, word in zip((1, 0), pair, strict=True)
    ]


def sentence_rows(pairs: dict[str, list[tuple[str, str]]]) -> list[tuple[str, dict]]:
    """What is said, and its row of sBLIMP's gold table."""
    return [
        (text, _gold(id, correct) | {"type": kind, "subtype": kind, "transcription": text})
        for kind, own in pairs.items()
        for id, pair in enumerate(own)
        for correct, text in zip((1, 0), pair, strict=True)
    ]


def _gold(id: int, correct: int) -> dict:
    return {"id": id, "voice": STORYTELLER, "correct": correct}


def write_stories(stories: list[Story], folder: Path, out: Path) -> None:
    """The suites whose recordings are put together of several sentences; `folder` is for the time being."""

    def saved(name: str, *parts: tuple[list[str], str]) -> Path:
        waveform = np.concatenate([told(sentences, voice) for sentences, voice in parts])
        save_wav(folder / f"{name}.wav", waveform, SAMPLE_RATE)
        return folder / f"{name}.wav"

    def ended(story: Story, end: str) -> Path:
        return saved(f"{story.id}-{end}", ([*story.sentences, getattr(story, end)], STORYTELLER))

    for name, wrong in (("tSC", "swapped"), ("sSC", "hard")):
        pairs = {story.id: (ended(story, "ending"), ended(story, wrong)) for story in stories}
        write_storycloze(out / "storycloze" / name, pairs)
    for story in stories:
        save_wav(out / "prompts" / f"{story.id}.wav", told([*story.sentences, story.ending]), SAMPLE_RATE)
    for name, other in OTHERS.items():
        pairs = []
        for number, story in enumerate(stories[:VOICED]):
            first, second = (STORYTELLER, other) if number % 2 else (other, STORYTELLER)
            begin, end = list(story.sentences[:2]), [*story.sentences[2:], story.ending]
            right = saved(f"{name}-{number}-right", (begin, first), (end, first))
            pairs.append((right, saved(f"{name}-{number}-wrong", (begin, first), (end, second))))
        write_salmon_part(out / "salmon" / name, pairs)


def word_pairs(draw: Random) -> list[tuple[str, str]]:
    """Words of the stories and non-words, which neither look nor sound like a word: one letter became another."""
    with open(get_model_path("en-us/cmudict-en-us.dict"), encoding="utf-8") as file:
        english = {line.split(maxsplit=1)[0].split("(")[0] for line in file}
    names = {name.lower() for name in GIRLS + BOYS}
    said = {phonemes(word) for word in vocabulary()}
    candidates = [word for word in vocabulary() if 4 <= len(word) <= 9 and word not in names]
    draw.shuffle(candidates)
    pairs = []
    for word in candidates:
        changes = [w for w in _one_letter_changed(word) if w not in english and phonemes(w) not in said]
        if changes:
            pairs.append((word, draw.choice(changes)))
        if len(pairs) == WORDS:
            break
    return pairs


def _one_letter_changed(word: str) -> list[str]:
    """All that differ in one inner letter, a vowel for a vowel or a consonant for a consonant between vowels."""
    found = []
    for i in range(1, len(word) - 1):
        others = "aeiou" if word[i] in "aeiou" else "bdfgklmnprstvz"
        if others[0] == "b" and not (word[i - 1] in "aeiou" and word[i + 1] in "aeiou"):
            continue
        found += [word[:i] + letter + word[i + 1 :] for letter in others if letter != word[i]]
    return found


def sentence_pairs(stories: list[Story], draw: Random) -> dict[str, list[tuple[str, str]]]:
    """Kind of error → sentences and what the error makes of them."""
    sentences = sentences_of(stories)
    draw.shuffle(sentences)
    kinds: dict[str, Callable[[str], str]] = {
        "agreement": lambda text: re.sub(r"^(He|She|It) was\b", r"\1 were", text),
        "case": lambda text: re.sub(r"\b(his|her) (?=\w+ (?:was|came|gave|had|followed))", "him ", text),
        "article": lambda text: re.sub(r"\b(a|an|the) (?=\w+\.)", "", text),
        "order": lambda text: re.sub(r"\b(into|to|in|on|under|with) (the|a|an|his|her) ", r"\2 \1 ", text, count=1),
    }
    found = {}
    for kind, spoil in kinds.items():
        pairs = [(text, spoil(text)) for text in sentences]
        found[kind] = [pair for pair in pairs if pair[0] != pair[1]][:SENTENCES]
    return found


if __name__ == "__main__":
    main()
