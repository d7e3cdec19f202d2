"""Files of candidates made up for tests, and what is built of them."""

import json
import random

from elocute.pipelines.pairs.build import build_pairs
from elocute.pipelines.pairs.options import PairOptions

ASK = {"messages": [{"role": "user", "content": "four?"}]}


def candidate(semantic=3, acoustic=3, text="four", **fields):
    scores = {"semantic_score": semantic, "paralinguistic_score": acoustic}
    return {"output-text": text, "output-audio": f"{text}.wav", "gemini_score": scores, **fields}


def row(*candidates, **fields):
    return {**ASK, "output": {str(i): one for i, one in enumerate(candidates)}, **fields}


def some_rows(count, seed=0):
    draw = random.Random(seed)
    return [
        row(*(candidate(draw.randint(1, 5), draw.randint(1, 5), f"say {i}") for i in range(4)), id=f"q{number}")
        for number in range(count)
    ]


def as_lines(rows):
    return "".join(json.dumps(one) + "\n" for one in rows)


def options(folder, **told):
    return PairOptions(**{"input": str(folder / "c.jsonl"), "output": str(folder / "pairs.jsonl"), **told})


def built(folder, content, *, part_bytes=2000, workers=1, **told):
    """The pairs' bytes."""
    (folder / "c.jsonl").write_text(content)
    build_pairs(options(folder, **told), part_bytes=part_bytes, workers=workers)
    return (folder / "pairs.jsonl").read_bytes()
