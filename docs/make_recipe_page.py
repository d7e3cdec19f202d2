"""Writes the tables of recipe.md from the recipe's schema.

    python docs/make_recipe_page.py

What a key means is what the schema says under it; MEANINGS holds the rest. A key without a meaning is an error, and so
is a meaning without a key.
"""

import ast
import importlib
from pathlib import Path

from elocute.recipe import Recipe

COMMON = ("name", "weight", "gate")  # keys of every reward
PAGE = Path(__file__).with_name("recipe.md")
BEGIN, END = "<!-- keys: written by make_recipe_page.py -->", "<!-- end of the keys -->"

MEANINGS = {
    "Recipe.seed": "Of everything drawn at random, see [Seeds](#seeds).",
    "Recipe.run_dir": "The run's folder; a new run needs it empty or absent.",
    "Recipe.steps": "Steps of the run: one rollout of `prompts_per_step` × `group_size` answers each.",
    "Recipe.model": "Folder of the model to train, see [own-model.md](own-model.md).",
    "Recipe.dtype": "Of the weights; log-probs and statistics are float32 either way.",
    "Recipe.gradient_checkpointing": "Compute activations again in the backward pass: less memory, slower.",
    "Recipe.trackers": "See [Trackers](#trackers).",
    "Recipe.report": "Write `report.html` at the end.",
    "Data.train": "Rows to train on, see [own-data.md](own-data.md).",
    "Data.eval": "Rows with an `answer` column; null: no evaluation.",
    "Rollout.group_size": "Answers a prompt, G.",
    "Rollout.prompts_per_step": "Prompts a step, P, over all processes: a multiple of their number.",
    "Rollout.max_new_tokens": "An answer without an end by then is broken.",
    "Rollout.temperature": "Of sampling, and of the log-probs of the policy gradient and the KL.",
    "Rollout.top_k": "Sample from the k likeliest tokens; 0: all.",
    "Rollout.top_p": "Then from the likeliest tokens that hold this share; 1: all.",
    "RewardMix.scale": "`raw`: Σ weight·value; `group`: each reward standardised within its group first.",
    "Adaptive.lambda_max": "Highest λ.",
    "Adaptive.ema": "Share of the previous λ in the next one, by optimiser step; 0: no smoothing.",
    "Adaptive.sharpness": "Of the reward gate, on the paper's 1–5 scale.",
    "Fixed.value": "λ.",
    "PolicyGradient.scope": "Tokens that the policy gradient trains.",
    "PolicyGradient.text_weight": "Weight of text tokens; not part of the normaliser.",
    "PolicyGradient.speech_weight": "Weight of speech units; not part of the normaliser.",
    "PolicyGradient.normaliser": "See [losses.md](losses.md#normalisers).",
    "PolicyGradient.baseline": "What is subtracted from a reward: the group's mean, or that of its other answers.",
    "PolicyGradient.scale": "Divide advantages by the group's standard deviation, or do not.",
    "Sft.scope": "Tokens that the supervised loss trains.",
    "Sft.text_weight": "Weight of text tokens; not part of the normaliser.",
    "Sft.speech_weight": "Weight of speech units; not part of the normaliser.",
    "Sft.normaliser": "See [losses.md](losses.md#normalisers).",
    "Kl.text": "β of text tokens.",
    "Kl.speech": "β of speech units.",
    "Kl.estimator": "`k3`: from the sampled tokens' log-probs; `exact`: over the whole vocabulary.",
    "Lora.rank": "Rank of the adapters.",
    "Lora.alpha": "Their scale is alpha / rank.",
    "Lora.targets": "Names of the linear layers that get one.",
    "Optim.lr": "Highest learning rate of AdamW.",
    "Optim.betas": "AdamW's.",
    "Optim.weight_decay": "AdamW's.",
    "Optim.clip_norm": "Largest gradient norm.",
    "Optim.schedule": "From the warm-up's end to `steps`: level, or falling to 0.",
    "Optim.warmup_steps": "Steps of linear warm-up.",
    "Optim.updates_per_rollout": "Optimiser steps on the same rollouts; above 1 needs `policy_gradient.clip`.",
    "Checkpoint.every": "Steps between checkpoints; there is one at the end and at Ctrl-C too.",
    "Checkpoint.keep": "How many are kept, the newest.",
    "Evaluation.temperature": "Of sampling in the evaluation.",
    "Evaluation.batch": "Questions answered at a time; the result does not depend on it.",
    "GateSpec.reward": "Name of another reward.",
    "GateSpec.at_least": "Its least value at which this one counts.",
    "RuleSpec.column": "Column with one accepted answer or a list.",
    "RuleSpec.match": "See [own-reward.md](own-reward.md#rule).",
    "PocketSphinxSpec.workers": "Processes that listen.",
    "TransformersEarSpec.path": "A local Whisper or CTC folder.",
    "EmbeddingSpec.path": "A local encoder folder.",
    "EmbeddingSpec.column": "Column with one reference or a list; the nearest counts.",
    "ClassifierSpec.path": "A local sequence classifier's folder.",
    "ClassifierSpec.label": "The label whose probability is the reward.",
    "FunctionSpec.function": "The callable's address.",
    "FunctionSpec.low": "Least value it may give.",
    "FunctionSpec.high": "Highest value it may give.",
    "JudgeSpec.rubric": "What the judge is asked for.",
    "JudgeSpec.send_audio": "Send question and answer as audio; false for a judge that only reads.",
    "JudgeSpec.max_tokens": "Longest reply.",
    "JudgeSpec.concurrency": "Requests in flight.",
    "JudgeSpec.attempts": "Tries a request.",
}


def doc_strings() -> tuple[dict[str, str], dict[str, list[str]]]:
    """ "Class.field" → what the schema says under the field; class → the classes it is made from."""
    said, bases = {}, {}
    for module in ("schema", "rewards"):
        source = Path(importlib.import_module(f"elocute.recipe.{module}").__file__).read_text()
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef):
                bases[node.name] = [base.id for base in node.bases]
                for field, text in zip(node.body, node.body[1:], strict=False):
                    is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
                    if isinstance(field, ast.AnnAssign) and is_text:
                        said[f"{node.name}.{field.target.id}"] = " ".join(text.value.value.split())
    return said, bases


class Writer:
    """The schema as Markdown tables, one a section."""

    def __init__(self):
        schema = Recipe.model_json_schema()
        self.sections = schema["$defs"] | {"Recipe": schema}
        self.said, self.bases = doc_strings()
        self.used: set[str] = set()

    def page(self) -> str:
        """All tables; ValueError when a meaning has no key."""
        text = "\n".join(self.section("Recipe", "", "## Top level"))
        if stale := sorted(set(MEANINGS) - self.used):
            raise ValueError(f"MEANINGS: no such key, or the schema says it itself: {', '.join(stale)}")
        return text.strip()

    def section(self, name: str, prefix: str, heading: str, keys=None) -> list[str]:
        """A section's table (all keys, or only `keys`), then the tables of the sections in it."""
        section = self.sections[name]
        about = [" ".join(section["description"].split()), ""] if keys != COMMON and "description" in section else []
        fields = {key: field for key, field in section["properties"].items() if key != "kind"}
        fields = {key: field for key, field in fields.items() if keys is None or key in keys}
        lines = ["", heading, "", *([] if name == "Recipe" else about)]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        lines += [self.row(name, f"{prefix}{key}", key, field) for key, field in fields.items()]
        level = "#" * min(heading.count("#") + 1, 4)
        for key, field in fields.items():
            lines += self.below(field, f"{prefix}{key}", level)
        return lines

    def below(self, field: dict, place: str, level: str) -> list[str]:
        """The tables of the sections that a key holds."""
        names = sections_in(field)
        if place == "rewards":
            lines = self.section(names[0], "", f"{level} rewards: keys of every kind", COMMON)
            for name in names:
                own = self.sections[name]["properties"].keys() - set(COMMON)
                lines += self.section(name, "", f"{level} rewards: `kind: {self.kind_of(name)}`", own)
            return lines
        lines = []
        for name in names:
            kind = self.kind_of(name)
            lines += self.section(name, f"{place}.", f"{level} {place}{f': `kind: {kind}`' if kind else ''}")
        return lines

    def kind_of(self, name: str) -> str | None:
        return self.sections[name]["properties"].get("kind", {}).get("const")

    def row(self, name: str, place: str, key: str, field: dict) -> str:
        default = f"`{shown(field['default'])}`" if "default" in field else "must be given"
        if key == "name":
            default = "the kind"
        if sections_in(field):
            if field.get("default"):
                kind = field["default"].get("kind")
                default = f"`kind: {kind}`" if kind else "its own"
            kinds = [f"`{kind}`" for kind in map(self.kind_of, sections_in(field)) if kind]
            meaning = f"`kind`: {', '.join(kinds)}" if kinds else "see below"
        else:
            meaning = self.meaning(name, key)
        return f"| `{place}` | {type_of(field)} | {default} | {meaning} |"

    def meaning(self, name: str, key: str) -> str:
        """The schema's words, else MEANINGS'."""
        owners = [f"{owner}.{key}" for owner in (name, *self.bases[name])]
        for owner in owners:
            if owner in self.said:
                return self.said[owner]
        for owner in owners:
            if owner in MEANINGS:
                self.used.add(owner)
                return MEANINGS[owner]
        raise ValueError(f"{name}.{key}: neither the schema nor MEANINGS says what it means")


def options_of(field: dict) -> list[dict]:
    return field.get("anyOf") or field.get("oneOf") or [field]


def sections_in(field: dict) -> list[str]:
    """Names of the sections a key may hold."""
    return [option["$ref"].rsplit("/", 1)[1] for option in options_of(field.get("items", field)) if "$ref" in option]


def type_of(field: dict) -> str:
    """A type for people, with its range."""
    if len(options_of(field)) > 1:
        return " or ".join(dict.fromkeys(map(type_of, options_of(field))))
    if "$ref" in field:
        return "section"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field["type"] == "array":
        pair = field.get("prefixItems")
        return f"{len(pair)} × {type_of(pair[0])}" if pair else f"list of {type_of(field['items'])}"
    formats = {"path": "path", "file-path": "file", "directory-path": "folder", "regex": "regular expression"}
    names = {"integer": "int", "number": "float", "boolean": "bool", "string": "text", "null": "null"}
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[limit]:g}" for limit, sign in signs.items() if limit in field]
    return f"{formats.get(field.get('format')) or names[field['type']]} {', '.join(limits)}".strip()


def shown(value) -> str:
    """A default as YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def renewed(page: str) -> str:
    """`page` with its tables written again."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{Writer().page()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
