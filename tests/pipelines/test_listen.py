"""A textless model's candidates are scored by the words that a real recogniser hears in them."""

import json
from pathlib import Path

from elocute.pipelines.score import CandidateScorer
from elocute.recipe import load_recipe

RECIPE = "recipes/starter/wavalign.yaml"


def test_what_a_textless_model_said_is_written_down_and_judged(tmp_path):
    """Prompt and candidates without a word; what the recogniser hears stands in the file and is what rewards read."""
    rows = [json.loads(line) for line in Path("starter/data/wavs.jsonl").read_text().splitlines()[:3]]
    lines = []
    for row in rows:
        sounds = {name: str((Path("starter/data") / row[name]).resolve()) for name in ("sft_target_audio",)}
        output = {"0": {"output-text": "", "output-audio": sounds["sft_target_audio"], "broken": None}}
        ask = {"messages": [{"role": "user", "content": "<|audio|>"}], "answer": row["sft_target_text"]}
        audios = [str((Path("starter/data") / audio).resolve()) for audio in row["audios"]]
        lines.append(json.dumps({"id": row["id"], **ask, "audios": audios, "output": output}) + "\n")
    (tmp_path / "candidates.jsonl").write_text("".join(lines))
    listen = "listen={kind: pocketsphinx, vocabulary: starter/answers.txt}"
    rule = "rewards=[{kind: rule, name: right, column: answer, match: exact}]"
    recipe = load_recipe(RECIPE, ["data.eval=null", "lora=null", rule, listen])
    with CandidateScorer(recipe, tmp_path / "candidates.jsonl", tmp_path / "scored.jsonl") as scorer:
        scorer.run()
    scored = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert [line["output"]["0"]["output-text"] for line in scored] == [row["sft_target_text"] for row in rows]
    assert [line["output"]["0"]["score"] for line in scored] == [1.0, 1.0, 1.0]
    assert all(line["question_text"] for line in scored)
