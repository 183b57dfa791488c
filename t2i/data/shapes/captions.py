"""Three captions for every scene, as DALL-E 3 needs them: `short`, `descriptive`, and `alt` as careless as web text.

Betker et al. 2023, section 2. Every word comes from `WORDS`, so a vocabulary trained on these captions is complete.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from t2i.data.shapes.scene import COLOURS, SHAPES, Scene, Thing, relations

KINDS = ("short", "descriptive", "alt")
WEIGHTS: Mapping[str, float] = {"short": 0.6, "descriptive": 0.25, "alt": 0.15}

VERSION = 4
"""Grows when a scene's sentences change, so that pictures rendered earlier are not mixed with others unawares."""

_WORDS = """
. , : a an the one two three four 2 3 4 and of with in on to is are it there this from by
red orange yellow green blue purple violet pink brown black white grey gray beige pale slate
cube cubes box boxes sphere spheres ball balls cylinder cylinders cone cones pyramid pyramids
torus toruses ring rings donut donuts
large big small tiny little shiny glossy matte plain striped checkered checked stripes checks
left right front behind top next beside above under below beneath stacked side middle center
floor sky wooden tiled light shadow falls comes stands sits
picture image photo render drawing scene shows view object objects shape shapes thing things stuff
3d img 001 042 0231 7 final untitled wallpaper background abstract toy geometry lesson free download hd cool
nice my new stock cgi colourful colorful simple blocks test copy
"""
WORDS: tuple[str, ...] = tuple(sorted(_WORDS.split()))
"""Every word and mark that a caption can contain, in a fixed order."""

NOUNS = {
    "cube": ("cube", "box"),
    "sphere": ("sphere", "ball"),
    "cylinder": ("cylinder",),
    "cone": ("cone",),
    "pyramid": ("pyramid",),
    "torus": ("torus", "ring", "donut"),
}
PLURALS = {"box": "boxes", "torus": "toruses"}
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
ADJECTIVES = {
    "large": ("large", "big"),
    "small": ("small", "small", "tiny", "little"),
    "matte": ("matte",),
    "shiny": ("shiny", "shiny", "glossy"),
    "plain": ("plain",),
    "striped": ("striped",),
    "checkered": ("checkered", "checkered", "checked"),
}
_MENTIONED = {
    "large": 0.05,
    "small": 0.8,
    "matte": 0.04,
    "shiny": 0.75,
    "plain": 0.03,
    "striped": 0.88,
    "checkered": 0.88,
}
_LONGEST = 60  # words and marks of a caption
_PHRASES = {
    "left of": ("to the left of", "to the left of", "left of", "on the left of", "next to"),
    "right of": ("to the right of", "to the right of", "right of", "on the right of", "beside"),
    "in front of": ("in front of",),
    "behind": ("behind",),
    "on top of": ("on top of", "on top of", "on", "above", "stacked on"),
    "under": ("under", "below", "beneath"),
}
_FLOORS = {
    "grey": ("grey", "gray"),
    "beige": ("beige",),
    "sage": ("pale green",),
    "slate": ("slate",),
    "tiles": ("tiled",),
    "checker": ("checkered",),
    "wood": ("wooden",),
    "planks": ("wooden",),
}
_SKIES = {"day": "blue", "dawn": "pale orange", "dusk": "pink", "mist": "grey", "mint": "pale green"}


def captions(scene: Scene, rng: random.Random) -> dict[str, str]:
    """One caption of each kind, lower case."""
    return {"short": short(scene, rng), "descriptive": descriptive(scene, rng), "alt": alt(scene, rng)}


def short(scene: Scene, rng: random.Random) -> str:
    """What a person would type: the things, their striking attributes and, often, how they stand."""
    groups = _groups(scene.things)
    if len(groups) == 1:
        text = _counted(*groups[0], rng)
        if len(scene.things) > 1 and rng.random() < 0.1:
            text += _standing(scene)
    else:
        related = _related(scene, rng) if rng.random() < 0.75 else None
        text = related or _listed([_counted(*g, rng) for g in groups])
    if len({thing.shape for thing, _ in groups}) == len(groups) and rng.random() < 0.2:
        text = _colourless(text)
    if rng.random() < 0.07:
        text += f" on a {rng.choice(_FLOORS[scene.floor])} floor"
    if rng.random() < 0.08:
        text = rng.choice(("a picture of", "an image of", "a photo of", "a 3d render of", "a drawing of")) + " " + text
    elif text.startswith("a ") and rng.random() < 0.12:
        text = text[2:].replace(" and a ", " and ")
    return text


def _standing(scene: Scene) -> str:
    """How things that all look the same stand, where a word says it."""
    if any(thing.support is not None for thing in scene.things):
        return " stacked"
    beside = [name for _, name, _ in relations(scene) if name in ("left of", "right of")]
    return " side by side" if len(beside) == len(scene.things) * (len(scene.things) - 1) else ""


def descriptive(scene: Scene, rng: random.Random) -> str:
    """Everything in a few sentences, at most 60 words and marks."""
    groups = _groups(scene.things)
    things = _listed([_counted(*g, rng, full=True) for g in groups])
    many = len(scene.things) > 1
    opening = [
        "the picture shows",
        "the image shows",
        "this is a scene of",
        "there is" if things[:2] == "a " else "there are",
    ]
    sentences = [f"{rng.choice(opening)} {things}"]
    if len(groups) > 1 and rng.random() < 0.2:
        sentences[0] = f"{NUMBERS[len(scene.things)]} objects: {things}"
    if many:
        sentences += _placements(scene, rng)
    else:
        x = scene.camera.project(scene.things[0].x, scene.things[0].y, 0.3)[0]
        place = (
            "on the left"
            if x < 0.43
            else "on the right"
            if x > 0.57
            else rng.choice(("in the middle", "in the center"))
        )
        sentences.append(f"it {rng.choice(('stands', 'sits', 'is'))} {place}")
    floor, sky = rng.choice(_FLOORS[scene.floor]), _SKIES[scene.sky]
    sentences.append(rng.choice((f"the floor is {floor} and the sky is {sky}", f"the floor is {floor}")))
    if rng.random() < 0.4:
        light, shadow = ("left", "right") if scene.light.azimuth < 0 else ("right", "left")
        sentences.append(rng.choice((f"the light comes from the {light}", f"the shadow falls to the {shadow}")))
    while sum(len(s.split()) + s.count(",") + s.count(":") + 1 for s in sentences) > _LONGEST:
        sentences.pop()
    return ". ".join(sentences) + "."


def alt(scene: Scene, rng: random.Random) -> str:
    """Web text: incomplete, off the point or wrong."""
    thing = rng.choice(scene.things)
    name, colour = _noun(thing, rng), _colour(thing, rng)
    wrong = rng.choice(COLOURS)
    return rng.choice(
        (
            f"img {rng.choice(('001', '042', '0231', '7'))} {name} render",
            f"{colour} {name} 3d render",
            f"3d {colour} thing",
            f"{colour} {name}",
            f"{name}",
            f"{wrong} {name}",
            f"{colour} {rng.choice(SHAPES)}",
            f"my {rng.choice(('new', 'cool', 'nice'))} {name}",
            f"{colour} toy {name} stock photo",
            f"{name} on {rng.choice(_FLOORS[scene.floor])} floor free download",
            f"{rng.choice(('colourful', 'colorful', 'simple', 'abstract'))} shapes wallpaper hd",
            f"geometry lesson {name} view",
            f"{rng.choice(('untitled', 'final', 'test', 'copy'))} {rng.choice(('render', 'image', 'scene', 'cgi'))}",
            f"{colour} stuff background",
            f"{colour} {rng.choice(('blocks', 'shape', 'object', 'things'))}",
        )
    )


def _groups(things: Sequence[Thing]) -> list[tuple[Thing, int]]:
    """Things that look the same, with their number, from left to right as one reads: `a cube and a cone` then says a
    little of where they are, and a network has one picture to aim at rather than two."""
    ordered = sorted(things, key=lambda t: t.x)
    return list(Counter(replace(t, x=0.0, y=0.0, base_z=0.0, angle=0.0, support=None) for t in ordered).items())


def _noun(thing: Thing, rng: random.Random) -> str:
    first, *others = NOUNS[thing.shape]
    return rng.choice(others) if others and rng.random() < 0.15 else first


def _colour(thing: Thing, rng: random.Random) -> str:
    return "violet" if thing.colour == "purple" and rng.random() < 0.1 else thing.colour


def _described(thing: Thing, rng: random.Random, full: bool, noun: str) -> str:
    """Adjectives and noun. In full, every attribute is named, save that `plain` may go without saying."""
    if not full and thing.pattern != "plain" and rng.random() < 0.12:
        marks = "stripes" if thing.pattern == "striped" else "checks"
        return _described(replace(thing, pattern="plain"), rng, full, noun) + f" with {marks}"
    adjectives = []
    for value in (thing.size, thing.material, thing.pattern):
        if rng.random() < ((0.3 if value == "plain" else 1.0) if full else _MENTIONED[value]):
            adjectives.append(rng.choice(ADJECTIVES[value]))
    return " ".join((*adjectives, _colour(thing, rng), noun))


def _colourless(text: str) -> str:
    """The same with the colours left unsaid: `an orange cone and a cube` → `a cone and a cube`."""
    words = [word for word in text.split() if word not in COLOURS and word != "violet"]
    nexts = [*words[1:], ""]
    return " ".join(
        ("an" if after[:1] in "aeiou" else "a") if word in ("a", "an") and after else word
        for word, after in zip(words, nexts, strict=True)
    )


def _counted(thing: Thing, count: int, rng: random.Random, full: bool = False) -> str:
    noun = _noun(thing, rng)
    if count > 1:
        number = str(count) if rng.random() < 0.2 else NUMBERS[count]
        return f"{number} {_described(thing, rng, full, PLURALS.get(noun, noun + 's'))}"
    text = _described(thing, rng, full, noun)
    if not full and rng.random() < 0.02:
        return f"one {text}"
    return ("an " if text[0] in "aeiou" else "a ") + text


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _facts(scene: Scene) -> list[tuple[int, str, int]]:
    """Relations between things that a colour and a shape tell apart, with `under` beside `on top of`."""
    names = Counter((t.colour, t.shape) for t in scene.things)
    unique = [names[t.colour, t.shape] == 1 for t in scene.things]
    facts = [(i, name, j) for i, name, j in relations(scene) if unique[i] and unique[j]]
    return facts + [(j, "under", i) for i, name, j in facts if name == "on top of"]


def _related(scene: Scene, rng: random.Random) -> str | None:
    """One relation, then whatever else there is."""
    facts = _facts(scene)
    if not facts:
        return None
    stacked = [f for f in facts if f[1] in ("on top of", "under")]
    i, name, j = rng.choice(stacked if stacked and rng.random() < 0.8 else facts)
    first, second = (_counted(scene.things[k], 1, rng) for k in (i, j))
    text = f"{first} {rng.choice(_PHRASES[name])} {second}"
    rest = [t for k, t in enumerate(scene.things) if k not in (i, j)]
    if not rest:
        return text
    others = _listed([_counted(*g, rng) for g in _groups(rest)])
    return f"{text} {rng.choice(('with', 'with', 'and'))} {others}"


def _placements(scene: Scene, rng: random.Random) -> list[str]:
    """One or two sentences that place things by each other."""
    facts = _facts(scene)
    rng.shuffle(facts)
    relations: list[str] = []
    pairs: set[frozenset[int]] = set()
    for i, name, j in facts:
        if frozenset((i, j)) in pairs or len(relations) == 2:
            continue
        pairs.add(frozenset((i, j)))
        a, b = (f"the {scene.things[k].colour} {scene.things[k].shape}" for k in (i, j))
        relations.append(f"{a} is {rng.choice(_PHRASES[name])} {b}")
    return relations
