"""Writes the tables of recipe.md from the recipe's schema.

    python docs/make_recipe_page.py

What a key means is what the schema says under it; a key without a meaning is an error.
"""

import re
from pathlib import Path

from elocute.recipe import Recipe

COMMON = ("name", "weight", "gate", "unit_credit")  # keys of every reward
AS_REWARDS = "evaluation.labels"  # holds entries that stand under rewards
PAGE = Path(__file__).with_name("recipe.md")
BEGIN, END = "<!-- keys: written by make_recipe_page.py -->", "<!-- end of the keys -->"


class Writer:
    """The schema as Markdown tables, one a section."""

    def __init__(self):
        schema = Recipe.model_json_schema()
        self.sections = schema["$defs"] | {"Recipe": schema}

    def page(self) -> str:
        """All tables; ValueError when a key has no meaning."""
        return "\n".join(self.section("Recipe", "", "## Top level")).strip()

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
        if place == AS_REWARDS:
            return []
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
            if place == AS_REWARDS:
                meaning = f"{said(field)} {meaning}"
        else:
            meaning = said(field)
            if not meaning:
                raise ValueError(f"{name}.{key}: the schema does not say what it means")
        return f"| `{place}` | {type_of(field)} | {default} | {meaning} |"


def said(field: dict) -> str:
    """What the schema says under a key, with links to the pages it names."""
    return re.sub(r"docs/([a-z-]+\.md)", r"[\1](\1)", " ".join(field.get("description", "").split()))


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
    if field["type"] == "object":
        return f"mapping of text to {type_of(field['additionalProperties'])}"
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
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {shown(one)}' for key, one in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def renewed(page: str) -> str:
    """`page` with its tables written again."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{Writer().page()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
