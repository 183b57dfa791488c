"""What a caption claims, and what is wrong with it, by hand and by the captions that scenes have."""

import json
import random
from pathlib import Path

import pytest
import torch
from small import captioner

from t2i.core.decoding import Decoding
from t2i.core.errors import DataError, UsageError
from t2i.data import shapes
from t2i.data.shapes.captions import descriptive, short
from t2i.data.shapes.scene import Scene, Thing
from t2i.evals.captions import ROWS, Mention, captions, judge, mentions
from t2i.stages.captioner.model import Captioner
from t2i.stages.registry import save_stage
from t2i.text.tokenizers import TokenizerConfig


def scene(*kinds: str, large: int = 0) -> Scene:
    """Things such as `red cube` in a row, one of them large."""
    things = [kind.split() for kind in kinds]
    return Scene(
        tuple(
            Thing(shape, colour, size="large" if i == large else "small", x=i - 1.0)
            for i, (colour, shape) in enumerate(things)
        )
    )


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        ("a large shiny red cube", [Mention("cube", "red")]),
        ("Red ball", [Mention("sphere", "red")]),
        ("one violet donut with stripes", [Mention("torus", "purple", 1, exact=True)]),
        ("two small boxes and 3 pink rings.", [Mention("cube", None, 2, True), Mention("torus", "pink", 3, True)]),
        ("cones", [Mention("cone", None, None, True)]),
        ("the red cube is behind the cone", [Mention("cube", "red", again=True), Mention("cone", again=True)]),
        ("three objects: a cube", [Mention(None, None, 3, True), Mention("cube")]),
        ("a picture of shapes on a green floor, the sky is blue", []),
        ("", []),
    ],
)
def test_captions_are_read(caption: str, said: list[Mention]) -> None:
    assert list(mentions(caption)) == said


TWO = scene("red cube", "blue sphere")
THREE = scene("red cube", "red cube", "green cone", large=2)


@pytest.mark.parametrize(
    ("caption", "of", "main", "named", "invented"),
    [
        ("a red cube and a blue ball", TWO, True, True, ""),
        ("a red box is left of a blue sphere. the blue sphere is right of the red cube.", TWO, True, True, ""),
        ("a cube and a sphere", TWO, True, False, ""),
        ("a red cube", TWO, True, False, ""),
        ("a blue sphere", TWO, False, False, ""),
        ("a blue cube and a red sphere", TWO, False, False, "a blue cube"),
        ("a red cube, a blue sphere and a cone", TWO, True, True, "a cone"),
        ("two red cubes and a blue sphere", TWO, True, True, "2 red cube of 1"),
        ("a red cube, a cube and a blue sphere", TWO, True, True, "2 cube of 1"),
        ("a red cube and a blue sphere. the green cube is on the left", TWO, True, True, "a green cube"),
        ("a red blue cube and a blue sphere", TWO, False, False, "a red blue cube"),
        ("three objects: a red cube and a blue sphere", TWO, True, True, "3 object of 2"),
        ("two objects: a red cube and a blue sphere", TWO, True, True, ""),
        ("", TWO, False, False, ""),
        ("img 042 render", TWO, False, False, ""),
        ("two red cubes and a green cone", THREE, True, True, ""),
        ("a large red cube, a small red cube and a green cone", THREE, True, True, ""),
        ("a red cube and a green cone", THREE, True, False, ""),
        ("one red cube and a green cone", THREE, True, False, "1 red cube of 2"),
        ("three red cubes", THREE, False, False, "3 red cube of 2"),
        ("red cubes and a green cone", THREE, True, True, ""),
        ("red cubes and a blue sphere", TWO, True, True, "2 red cube of 1"),
        ("a cone", THREE, True, False, ""),
    ],
)
def test_captions_are_judged(caption: str, of: Scene, main: bool, named: bool, invented: str) -> None:
    assert judge(caption, of) == (main, named, invented)


def test_the_worlds_own_captions_are_right() -> None:
    """Every wording that captions.py has: nothing is missing, nothing is taken for invented."""
    for seed in range(600):
        it, rng = shapes.scene_from_seed(seed), random.Random(seed)
        full, brief = descriptive(it, rng), short(it, rng)
        assert judge(full, it).right == (True, True, True, True), (full, judge(full, it))
        verdict = judge(brief, it)
        assert (verdict.main, verdict.invented) == (True, ""), (brief, verdict)


def test_captions_of_other_scenes_are_mostly_wrong() -> None:
    right = 0
    for seed in range(200):
        text = descriptive(shapes.scene_from_seed(seed), random.Random(seed))
        right += judge(text, shapes.scene_from_seed(seed + 1)).right[3]
    assert right <= 4


def test_an_evaluation_counts_captions_with_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = captioner(tokenizer=TokenizerConfig(words=shapes.WORDS, context=64))
    save_stage(tmp_path / "model", "captioner", model)
    seen: list[tuple[int, ...]] = []

    def told(self: Captioner, image: torch.Tensor, decoding: object, streams: object) -> list[str]:
        """Right of the first three of four, whatever it sees."""
        held_out = [
            shapes.scene_from_seed(s | 1 << 62) for s in range(5 + 32 * len(seen), 5 + 32 * len(seen) + len(image))
        ]
        seen.append(tuple(image.shape))
        texts = [descriptive(s, random.Random(0)) for s in held_out]
        return [text if i % 4 < 3 else "a thing" for i, text in enumerate(texts)]

    monkeypatch.setattr(Captioner, "caption", told)
    report = captions(str(tmp_path / "model"), num=40, seed=5, device="cpu")
    assert seen == [(32, 3, 32, 32), (8, 3, 32, 32)]
    for row, correct in zip(ROWS, (30, 30, 40, 30), strict=True):
        share = report.facts["shares"][row]
        assert (share["correct"], share["total"]) == (correct, 40)
        assert share["low"] < share["share"] <= share["high"]
        assert f"{row:<20}{correct:>6}{40:>6}" in report.text
    rows = report.facts["captions"]
    assert [r["seed"] for r in rows] == list(range(5, 45))
    assert rows[3] | {"things": []} == {
        "seed": 8, "caption": "a thing", "things": [], "main": False, "named": False, "invented": rows[3]["invented"]
    }  # fmt: skip
    json.dumps(report.facts)


def test_an_untrained_captioner_is_judged_from_end_to_end(tmp_path: Path) -> None:
    save_stage(tmp_path, "captioner", captioner(tokenizer=TokenizerConfig(words=shapes.WORDS, context=24)))
    how = Decoding(temperature=1.0, min_length=3)
    first, second = (captions(str(tmp_path), num=num, decoding=how, device="cpu").facts["captions"] for num in (3, 2))
    assert first[:2] == second
    assert len({row["caption"] for row in first}) == 3
    with pytest.raises(UsageError, match="decoding: max_length=99, but there is room for 23 tokens"):
        captions(str(tmp_path), num=1, decoding=Decoding(max_length=99), device="cpu")
    with pytest.raises(DataError, match="no/such"):
        captions("no/such", num=1)
