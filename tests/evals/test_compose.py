"""The six tasks: what is asked, and what counts as right."""

import hashlib
import random
from collections import Counter

import pytest

from t2i.data import shapes
from t2i.data.shapes.scene import Box
from t2i.evals.compose import PHRASES, TASKS, Prompt, Wanted, holds, mean, prompts, score, summary
from t2i.evals.report import wilson
from t2i.stages.reader.model import Detection
from t2i.stages.reader.task import listed

RED_CUBE, BLUE_BALL = Wanted("cube", "red"), Wanted("sphere", "blue")


def thing(
    colour: str, shape: str, x: float = 0.5, y: float = 0.5, size: float = 0.2, raised: bool = False
) -> Detection:
    return Detection(shape, colour, Box(x - size / 2, y - size / 2, x + size / 2, y + size / 2), raised)


def test_the_list_is_fixed_and_different() -> None:
    found = prompts()
    digest = hashlib.sha256("\n".join(p.text for p in found).encode()).hexdigest()
    assert digest == "fd309f7c608b3854c15bd0204f4fec599976216f8ad34dfa26dde97faca23cab"
    assert len({p.text for p in found}) == len(found) == 120
    assert Counter(p.task for p in found) == dict.fromkeys(TASKS, 20)
    assert [p.task for p in found] == sorted((p.task for p in found), key=TASKS.index)


def test_every_word_is_one_that_captions_use() -> None:
    assert {word for p in prompts() for word in p.text.split()} <= set(shapes.WORDS)


def test_prompts_say_what_they_want() -> None:
    for p in prompts():
        for wanted in p.wanted:
            assert wanted.colour is None or wanted.colour in p.text
            assert wanted.num == 1 or {2: "two", 3: "three", 4: "four"}[wanted.num] in p.text
        assert p.relation is None or PHRASES[p.relation] in p.text
        assert (p.relation is not None) == (p.task == "position")


def test_every_prompt_can_be_drawn_and_is_then_right() -> None:
    for p in prompts():
        kinds = [(w.colour or "green", w.shape) for w in p.wanted for _ in range(w.num)]
        scene = shapes.compose(kinds, p.relation, random.Random(1))
        assert score(p, listed(scene)) == (True, "right"), p.text


def test_other_prompts_scenes_are_mostly_wrong() -> None:
    """A scene made for one prompt of colour attribution answers no other."""
    asked = [p for p in prompts() if p.task == "colour attribution"]
    for p in asked:
        scene = listed(shapes.compose([(w.colour, w.shape) for w in p.wanted], None, random.Random(2)))
        assert [score(other, scene)[0] for other in asked].count(True) == 1


CASES = [
    ("single object", (Wanted("cube"),), [thing("pink", "cube")], True),
    ("single object", (Wanted("cube"),), [thing("pink", "cube"), thing("red", "cone", 0.1)], True),
    ("single object", (Wanted("cube"),), [thing("pink", "cone")], False),
    ("single object", (Wanted("cube"),), [], False),
    ("two objects", (Wanted("cube"), Wanted("cone")), [thing("red", "cube"), thing("red", "cone", 0.1)], True),
    ("two objects", (Wanted("cube"), Wanted("cone")), [thing("red", "cube"), thing("red", "cube", 0.1)], False),
    ("colours", (RED_CUBE,), [thing("red", "cube")], True),
    ("colours", (RED_CUBE,), [thing("red", "cube"), thing("blue", "cone", 0.1)], True),
    ("colours", (RED_CUBE,), [thing("blue", "cube"), thing("red", "sphere", 0.1)], False),
    ("counting", (Wanted("cube", "red", 2),), [thing("red", "cube", 0.2), thing("red", "cube", 0.8)], True),
    ("counting", (Wanted("cube", "red", 2),), [thing("red", "cube", 0.2)], False),
    ("counting", (Wanted("cube", "red", 2),), [thing("red", "cube", x) for x in (0.2, 0.5, 0.8)], False),
    ("counting", (Wanted("cube", "red", 2),), [thing("red", "cube", 0.2), thing("blue", "cube", 0.8)], False),
    (
        "counting",
        (Wanted("cube", "red", 2),),
        [thing("red", "cube", 0.2), thing("red", "cube", 0.5), thing("blue", "cone", 0.8)],
        False,
    ),
    ("colour attribution", (RED_CUBE, BLUE_BALL), [thing("red", "cube"), thing("blue", "sphere", 0.1)], True),
    ("colour attribution", (RED_CUBE, BLUE_BALL), [thing("blue", "cube"), thing("red", "sphere", 0.1)], False),
    (
        "colour attribution",
        (RED_CUBE, BLUE_BALL),
        [thing("red", "cube"), thing("blue", "sphere", 0.1), thing("pink", "cone", 0.9)],
        False,
    ),
]


@pytest.mark.parametrize(("task", "wanted", "found", "right"), CASES)
def test_scores(task: str, wanted: tuple[Wanted, ...], found: list[Detection], right: bool) -> None:
    verdict, reason = score(Prompt(task, "", wanted), found)
    assert verdict == right
    assert (reason == "right") == right


def test_reasons_name_what_is_wrong() -> None:
    two = Prompt("counting", "two red cubes", (Wanted("cube", "red", 2),))
    assert score(two, [thing("red", "cube")])[1] == "1 of 2 red cube"
    assert score(two, [thing("red", "cube", x) for x in (0.1, 0.5, 0.9)])[1] == "3 objects instead of 2"


LEFT, RIGHT = thing("red", "cube", 0.25), thing("blue", "sphere", 0.75)
NEAR, FAR = thing("red", "cube", 0.5, 0.7, 0.25), thing("blue", "sphere", 0.55, 0.45, 0.2)
ABOVE, BELOW = thing("red", "cube", 0.5, 0.3, raised=True), thing("blue", "sphere", 0.51, 0.55)


@pytest.mark.parametrize(
    ("a", "b", "true"),
    [
        (LEFT, RIGHT, {"left of"}),
        (RIGHT, LEFT, {"right of"}),
        (thing("red", "cube", 0.25, 0.4), thing("red", "cube", 0.4, 0.6), {"behind"}),  # left less the margin: too near
        (NEAR, FAR, {"in front of"}),
        (FAR, NEAR, {"behind"}),
        (ABOVE, BELOW, {"on top of"}),
        (BELOW, ABOVE, set()),
        (ABOVE._replace(raised=False), BELOW, {"behind"}),  # higher in the picture, but on the floor
        (thing("red", "cube", 0.49), thing("red", "cube", 0.52), set()),  # too near to tell
        (thing("red", "cube", 0.9, 0.3, raised=True), BELOW, {"right of"}),  # stands on something else
    ],
)
def test_relations(a: Detection, b: Detection, true: set[str]) -> None:
    assert {relation for relation in PHRASES if holds(relation, a, b)} == true


def test_position_needs_the_right_objects_the_right_way_round() -> None:
    prompt = Prompt("position", "", (RED_CUBE, BLUE_BALL), "left of")
    assert score(prompt, [LEFT, RIGHT])[0]
    assert score(prompt, [RIGHT, LEFT])[0], "the order of detections says nothing"
    assert score(prompt, [thing("blue", "sphere", 0.2), thing("red", "cube", 0.8)]) == (
        False,
        "red cube not left of blue sphere",
    )
    assert not score(prompt, [LEFT, RIGHT._replace(colour="green")])[0]
    assert score(prompt, [thing("red", "cube", 0.9), LEFT, RIGHT])[0], "one pair that stands as said is enough"


def test_relations_agree_with_the_world() -> None:
    """Whatever the world calls unmistakable holds by the boxes as well, and its opposite does not."""
    opposite = {"left of": "right of", "right of": "left of", "in front of": "behind", "behind": "in front of"}
    told = Counter()
    for seed in range(400):
        scene = shapes.scene_from_seed(seed)
        things = listed(scene)
        for i, relation, j in shapes.relations(scene):
            told[relation] += 1
            assert holds(relation, things[i], things[j])
            assert not holds(relation, things[j], things[i])
            if relation in opposite:
                assert not holds(opposite[relation], things[i], things[j])
                assert not holds("on top of", things[i], things[j])
    assert set(told) == set(PHRASES)


def test_unknown_relation() -> None:
    with pytest.raises(ValueError, match=r"'inside'.*left of"):
        holds("inside", LEFT, RIGHT)


def test_wilson_interval() -> None:
    """Newcombe 1998, table I: 81 of 263, and the extremes of nothing and everything."""
    s = wilson(81, 263)
    assert (round(s.low, 4), round(s.high, 4)) == (0.2553, 0.3662)
    assert wilson(0, 20).low == 0 < wilson(0, 20).high < 0.2
    assert wilson(20, 20).high == 1 > wilson(20, 20).low > 0.8
    assert wilson(20, 20).share == 1


def test_summary_counts_by_task_and_mean_weighs_tasks_alike() -> None:
    one = Prompt("counting", "", (RED_CUBE,))
    other = Prompt("colours", "", (RED_CUBE,))
    shares = summary([(one, True), (one, False), (one, False), (one, False), (other, True)])
    assert list(shares) == ["counting", "colours"]
    assert (shares["counting"].correct, shares["counting"].total) == (1, 4)
    assert mean(shares) == pytest.approx((0.25 + 1) / 2)
