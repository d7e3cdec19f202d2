"""A continuation that was stopped before its end: what is trained is what was sampled, end or no end."""

import json
from copy import copy
from dataclasses import replace

import pytest

from elocute.data.audio import save_wav
from elocute.data.cache import EncodedAudio
from elocute.data.rows import read_rows
from elocute.errors import InputError
from elocute.models import load_model
from elocute.pipelines.pairs.build import build_pairs
from elocute.pipelines.pairs.options import PairOptions
from elocute.pipelines.sample import CandidateSampler
from elocute.pipelines.score import CandidateScorer
from elocute.recipe import load_recipe
from elocute.rollout import sample_groups
from tests.models.unit_folders import ending
from tests.pipelines.pair_files import as_lines, built, candidate, options, row
from tests.speech.unit_models import speech, unit_codec

RECIPE = "recipes/starter/wavalign.yaml"


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """The model, the file of candidates and the rollouts they were made of, by prompt and key."""
    folder, rollouts = tmp_path_factory.mktemp("cut"), {}
    model = ending(folder / "model", unit_codec(folder / "codec"))
    rows = []
    for name in ("a", "b"):
        save_wav(folder / f"{name}.wav", speech(1.2, seed=ord(name)), 16000)
        rows.append({"id": name, "messages": [{"role": "user", "content": "<|audio|>"}], "audios": [f"{name}.wav"]})
    (folder / "rows.jsonl").write_text(as_lines(rows))

    def watched(lm, prompts, seeds, sampling):
        groups = sample_groups(lm, prompts, seeds, sampling)
        rollouts.update(zip("ab", groups, strict=True))
        return groups

    given = [f"model={model}", f"data.cache={folder / 'cache'}", "rollout.max_new_tokens=4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("elocute.pipelines.sample.sample_groups", watched)
        job = CandidateSampler(load_recipe(RECIPE, given), folder / "rows.jsonl", folder / "out", n=8)
        job.run()
    return load_model(model), job.out / "candidates.jsonl", rollouts


def test_the_trained_tokens_are_the_sampled_tokens(sampled, tmp_path):
    lm, file, rollouts = sampled
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        for key, one in line["output"].items():
            rollout = rollouts[line["id"]][int(key)]
            assert one.get("cut") == (rollout.truncated or None)
            one["score"] = int(key) / 7
    scored = file.with_name("scored.jsonl")
    scored.write_text(as_lines(lines))
    pairs = tmp_path / "pairs.jsonl"
    many = {"score_mode": "reward", "differ_in": "any", "pairs_per_prompt": 28}
    build_pairs(PairOptions(input=str(scored), output=str(pairs), **many))
    audio, seen = EncodedAudio(lm.codec, tmp_path / "cache"), set()
    for fields, example in zip(map(json.loads, pairs.read_text().splitlines()), read_rows(pairs), strict=True):
        group = rollouts[example.id[0]]
        chosen, rejected = group[int(fields["chosen_key"])], group[int(fields["rejected_key"])]
        assert lm.encode_prompt(example, audio).equal(chosen.prompt)
        assert lm.encode_target(example, audio).ids.equal(chosen.tokens.ids)
        assert lm.encode_rejected(example, audio).ids.equal(rejected.tokens.ids)
        seen |= {("chosen", chosen.truncated), ("rejected", rejected.truncated)}
    assert len(seen) == 4  # each was cut here and ended there


def test_score_keeps_it(sampled, tmp_path):
    _, file, _ = sampled
    (tmp_path / "one.py").write_text("def one(waveforms, **columns):\n    return [1.0 for _ in waveforms]\n")
    rewards = f"rewards=[{{kind: function, function: '{tmp_path}/one.py:one', low: 0, high: 1}}]"
    with CandidateScorer(load_recipe(RECIPE, [rewards]), file, scored := tmp_path / "scored.jsonl") as scorer:
        scorer.run()
    for before, after in zip(file.read_text().splitlines(), scored.read_text().splitlines(), strict=True):
        before, after = (json.loads(line)["output"].values() for line in (before, after))
        assert [one.get("cut") for one in before] == [one.get("cut") for one in after]


def test_a_target_keeps_it_only_where_it_stays_the_target(folders):
    units = {"sft_target_units": [1, 2], "units_codec": "d", "sft_target_cut": True}
    answers = candidate(5, text="", **{"output-units": [3]}), candidate(1, text="", cut=True, **{"output-units": [4]})
    content = as_lines([row(*answers, id="q", **units)])
    [line] = built(folders("generated"), content).splitlines()
    assert json.loads(line)["rejected_cut"] is True and "sft_target_cut" not in json.loads(line)
    [line] = built(folders("target"), content, chosen_source="sft_target").splitlines()
    assert json.loads(line)["sft_target_cut"] is True and json.loads(line)["rejected_cut"] is True


def test_a_candidate_s_cut_is_true_or_false(sampled, tmp_path):
    _, file, _ = sampled
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[1]["output"]["3"]["cut"] = "yes"
    bad = file.with_name("bad.jsonl")
    bad.write_text(as_lines(lines))
    rewards = "rewards=[{kind: rule, column: id}]"
    with CandidateScorer(load_recipe(RECIPE, [rewards]), bad, tmp_path / "scored.jsonl") as scorer:
        with pytest.raises(InputError, match=rf"^{bad}:2: output\.3\.cut: expected true or false$"):
            scorer.check(resume=False)
    (tmp_path / "c.jsonl").write_text(as_lines([row(candidate(5), candidate(1, text="five", cut=1))]))
    with pytest.raises(InputError) as caught:
        build_pairs(options(tmp_path))
    assert "c.jsonl:1: output.1.cut: expected true or false" in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_whose_answers_must_end_learns_no_cut_one(sampled, tmp_path):
    lm, _, _ = sampled
    row = {"messages": [{"role": "user", "content": "<|audio|>"}], "audios": ["a.wav"], "rejected_cut": True}
    save_wav(tmp_path / "a.wav", speech(0.8), 16000)
    (tmp_path / "rows.jsonl").write_text(
        as_lines([row | {"rejected_units": [1, 2], "units_codec": lm.codec.digest}, row | {"rejected_audio": "a.wav"}])
    )
    examples, audio = read_rows(tmp_path / "rows.jsonl"), EncodedAudio(lm.codec, tmp_path / "cache")
    assert lm.encode_rejected(examples[0], audio).ids.tolist() == [3, 4]
    assert lm.encode_rejected(examples[1], audio).ids[-1] != lm.layout.answer_end
    strict = copy(lm)
    strict.layout = replace(lm.layout, open_ended=False)
    for example in examples:
        with pytest.raises(InputError) as caught:
            strict.encode_rejected(example, audio)
        said = f"{example.where}: rejected_audio: the answer was cut before its end; this model's answers must end"
        assert str(caught.value) == said
