"""What ships: rows that load, units that belong to the shipped codec, sound files that go in."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from elocute.data.audio import load_audio
from elocute.data.cache import EncodedAudio
from elocute.data.rows import read_rows
from elocute.data.units import UnitStore
from elocute.models import load_model
from elocute.rewards.pocketsphinx_ear import PocketSphinxEar
from elocute.rollout import Sampling, sample_groups
from elocute.speech.codec import StarterCodec
from elocute.speech.starter_units import StarterUnits
from starter.questions import draw_rows
from starter.stories import draw_stories

STARTER = Path(__file__).parents[2] / "starter"
DATA = STARTER / "data"


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_rows_are_the_rows_drawn_and_every_audio_is_there(split):
    shipped, drawn = read_rows(DATA / f"{split}.jsonl"), draw_rows(0)[split]
    assert [(row.id, row.question_text, row.target_text) for row in shipped] == [
        (row.id, row.item.question, row.target) for row in drawn
    ]


def test_units_are_the_shipped_codecs_and_sound_like_the_answers():
    codec, store = StarterCodec.load(STARTER / "codec"), UnitStore(DATA / "answers.safetensors")
    store.check_made_by(codec.digest)
    UnitStore(DATA / "questions.safetensors").check_made_by(codec.digest)
    answers = (STARTER / "answers.txt").read_text().splitlines()
    assert {text.replace(" ", "_") for text in answers} == store.keys()
    some = answers[::4]
    heard = PocketSphinxEar(answers).transcribe(
        [codec.decode(store.get(text.replace(" ", "_"))) for text in some], codec.sample_rate
    )
    assert np.mean([text == said for text, said in zip(some, heard, strict=True)]) > 0.9


def test_sound_files_encode_to_the_shipped_units():
    codec, rows = StarterCodec.load(STARTER / "codec"), read_rows(DATA / "wavs.jsonl")
    questions, answers = UnitStore(DATA / "questions.safetensors"), UnitStore(DATA / "answers.safetensors")
    assert len(rows) >= 12
    for row in rows:
        assert np.array_equal(codec.encode(*load_audio(row.audios[0].path)), questions.get(row.id))
        said = answers.get(row.target_text.replace(" ", "_"))
        assert np.array_equal(codec.encode(*load_audio(row.target_audio.path)), said)


def test_the_page_says_what_the_codec_measured():
    metrics, page = json.loads((STARTER / "codec" / "metrics.json").read_text()), (STARTER / "README.md").read_text()
    said = (
        f"{metrics['wer_resynthesis']:.1%} of words misheard after re-synthesis ({metrics['wer_original']:.1%} before)"
    )
    assert said.replace("%", " %") in page and f"F0 correlates {metrics['f0_correlation']:.2f}" in page


def test_all_that_ships_stays_small():
    files = [path for folder in ("data", "audio") for path in (STARTER / folder).iterdir()]
    assert sum(path.stat().st_size for path in files) < 6e6


@pytest.mark.parametrize("split", ["dev", "test"])
def test_prompts_of_stories_are_the_beginning_of_what_goes_on(split):
    rows, codec = read_rows(STARTER / "stories" / f"{split}.jsonl"), StarterUnits.load(STARTER / "units")
    drawn_stories = {story.id: story.text for story in draw_stories(split, len(rows))}
    assert {row.id: row.columns["story"] for row in rows} == drawn_stories
    for store in {ref.path for row in rows for ref in (row.audios[0], row.target_audio)}:
        UnitStore(store).check_made_by(codec.digest)
    for row in rows:
        words = re.findall(r"[A-Za-z']+", row.columns["story"])
        said = row.question_text.split()
        assert said == words[: len(said)] and 4 <= len(said) < len(words) - 4


def test_a_prompts_sound_file_encodes_to_the_shipped_units():
    codec, rows = StarterUnits.load(STARTER / "units"), read_rows(STARTER / "stories" / "test.jsonl")
    store = UnitStore(STARTER / "stories" / "prompts.safetensors")
    for number, row in enumerate(rows[:4]):
        waveform = load_audio(STARTER / "stories" / f"prompt-{number}.wav")
        assert np.array_equal(codec.encode(*waveform), store.get(row.id))


def test_the_textless_model_goes_on_with_a_story():
    lm, [row, *_] = load_model(STARTER / "unit_lm"), read_rows(STARTER / "stories" / "test.jsonl")
    prompt = lm.encode_prompt(row, EncodedAudio(lm.codec))
    [[rollout]] = sample_groups(lm, [prompt], [[0]], Sampling(max_new_tokens=120, temperature=0.8, top_k=25))
    sound = lm.decode(rollout.tokens.ids)
    assert sound.broken is None and 1.5 < sound.seconds < 6
    ear = PocketSphinxEar((STARTER / "stories" / "sentences.txt").read_text().splitlines())
    assert len(ear.transcribe([sound.waveform], sound.sample_rate)[0].split()) >= 3
