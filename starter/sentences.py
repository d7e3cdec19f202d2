"""Varied English sentences from templates: general vocabulary, numbers and letters, covering all phones of English."""

import random

_WORDS = {
    "person": """
        teacher doctor farmer sailor child brother mother uncle neighbor captain singer lawyer judge nurse
        painter shepherd boy girl woman king queen pilot student visitor author""",
    "animal": """
        horse zebra tiger rabbit chicken goose fish mouse elephant lion fox wolf pigeon donkey giraffe cat dog
        whale snake bear sheep monkey turtle ox""",
    "thing": """
        book chair table window garage treasure bottle candle knife spoon thumb feather hammer pencil picture
        kettle jacket shoe wheel clock mirror basket cushion television orange apple lemon bridge boat guitar
        violin coin watch umbrella engine ladder pillow rope stone flower""",
    "place": """
        kitchen garden village harbor station forest valley church school market desert beach museum island
        mountain river theater castle office bathroom factory library""",
    "quality": """
        large small hot cold young old quiet loud heavy light early late strong weak thick thin smooth rough
        bright dark wet dry cheap rich poor sharp dull narrow wide tall short clean dirty easy hard empty full
        happy sad""",
    "color": "red blue green yellow black white brown purple gray pink",
    "act": """
        found lost painted carried measured pushed washed watched sold bought broke fixed hid saw dropped
        touched kept brought moved opened""",
    "go": "walked ran drove hurried wandered jumped sailed climbed returned marched",
    "when": """
        yesterday today tomorrow tonight on Monday on Tuesday on Wednesday on Thursday on Friday on Saturday on
        Sunday in January in February in March in April in May in June in July in August in September in October
        in November in December""",
    "number": """
        zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
        seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety""",
    "tens": "twenty thirty forty fifty sixty seventy eighty ninety",
    "unit": "one two three four five six seven eight nine",
    "letter": "a b c d e f g h i j k l m n o p q r s t u v w x y z",
}
_TEMPLATES = [
    "The {quality} {person} {act} a {color} {thing} near the {place}.",
    "The {animal} and the {animal} {go} to the {place} {when}.",
    "What is {number} plus {number}?",
    "{number} minus {number} is {number}.",
    "{tens} {unit} times {unit} is more than {number}.",
    "Which is {larger}, {tens} {unit} or {number}?",
    "Is the {thing} {quality} or {quality}?",
    "My {person} never {act} the {thing}, but your {person} {act} the {animal}.",
    "How do you spell {thing}? It starts with {letter}, then {letter}, {letter}.",
    "The opposite of {quality} is {quality}.",
    "We should measure the {thing} with a {quality} {thing} before you go to the {place}.",
    "{letter} {letter} {letter} {letter} {letter}.",
    "There were {number} {color} boxes in the {place} {when}.",
    "Please bring me the {color} {thing} and the {quality} {thing}.",
    "Why did the {person} think that the {animal} was in the {place}?",
    "I usually enjoy a {quality} {thing}, though the {person} would rather choose the {thing}.",
    "The answer is {tens} {unit}, because {number} and {number} make {number}.",
    "After {number} comes {number}.",
    "Yes, the {animal} is {larger} than the {animal}.",
    "No, she could not hear the {person} from the {place}.",
    "Choose the {color} {thing}, the {thing} or the {animal}.",
    "If you have {number} coins and lose {unit}, you have {number} left.",
    "The {person} {go} through the {quality} {place} with a {animal} and a {thing}.",
    "They just joined the {person} for a {quality} voyage to the {place}.",
]  # fmt: skip
_WORDS["larger"] = "larger smaller older younger heavier lighter faster slower taller shorter"


def _choices(kind: str) -> list[str]:
    words = _WORDS[kind].split()
    return [f"on {w}" if w.endswith("day") and w[0].isupper() else f"in {w}" if w[0].isupper() else w
            for w in words if w not in ("on", "in")] if kind == "when" else words  # fmt: skip


def sentences(count: int, seed: int) -> list[str]:
    """`count` different sentences, the same for the same seed; templates take turns so that each is used as often."""
    draw = random.Random(seed)
    made: dict[str, None] = {}
    turn = 0
    while len(made) < count:
        text = _TEMPLATES[turn % len(_TEMPLATES)]
        turn += 1
        for kind in _WORDS:
            while "{" + kind + "}" in text:
                text = text.replace("{" + kind + "}", draw.choice(_choices(kind)), 1)
        made[text[0].upper() + text[1:]] = None
    return list(made)
