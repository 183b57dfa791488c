"""`t2i eval compose` from end to end, with a pipeline that draws exact renders instead of a trained one."""

import json
import random
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch

from t2i.core.errors import UsageError
from t2i.data import shapes
from t2i.evals.compose import TASKS, compose, prompts
from t2i.io.images import to_pil
from t2i.pipeline.output import Output
from t2i.stages.registry import stage


class Drawer:
    """Renders what a prompt asks for; with `colour`, everything in that one colour."""

    device = torch.device("cpu")
    parts = MappingProxyType({"prior": None, "decoder": None})
    planner = SimpleNamespace(stages={name: stage(name) for name in parts})
    subject, judged = "prompt", "decoder"

    def __init__(self, colour: str | None = None) -> None:
        self.colour = colour
        self.calls: list[dict[str, Any]] = []

    def __call__(self, texts: list[str], *, num_images_per_prompt: int, seed: int, **call: Any) -> Output:
        self.calls.append(call)
        wanted = {p.text: p for p in prompts()}
        scenes = []
        for i, text in enumerate(t for t in texts for _ in range(num_images_per_prompt)):
            kinds = [(self.colour or w.colour or "green", w.shape) for w in wanted[text].wanted for _ in range(w.num)]
            scenes.append(shapes.compose(kinds, wanted[text].relation, random.Random(seed + i)))
        images = to_pil(shapes.render(scenes, 64))
        return Output(images, [seed + i for i in range(len(images))], texts, {"model": "drawer"})


@pytest.fixture
def drawer(monkeypatch: pytest.MonkeyPatch) -> Drawer:
    pipe = Drawer()
    monkeypatch.setattr("t2i.evals.compose.Pipeline", SimpleNamespace(from_pretrained=lambda *_, **__: pipe))
    monkeypatch.setattr("t2i.evals.compose.HELD_OUT", 8)
    return pipe


def test_a_pipeline_that_draws_what_is_asked_scores_high(drawer: Drawer, tmp_path: Path) -> None:
    report = compose("drawer", num=1, seed=3, device="cpu", call={"stop_after": "decoder", "steps": None})
    text = report.text
    assert drawer.calls == [{"stop_after": "decoder", "steps": None}]
    assert all(task in text for task in (*TASKS, "mean of the tasks", "held-out renders"))
    report.save(tmp_path / "results.json")
    result = json.loads((tmp_path / "results.json").read_text())
    assert result["mean"] >= 0.95
    assert len(result["pictures"]) == 120
    assert result["reader"]["renders"] == 8
    assert text.endswith("not to be compared with GenEval's numbers")
    assert result["pictures"][0]["seed"] == 3
    assert {row["why"] for row in result["pictures"] if row["right"]} == {"right"}
    for task, share in result["tasks"].items():
        rows = [row["right"] for row in result["pictures"] if row["task"] == task]
        assert (sum(rows), len(rows)) == (share["correct"], share["total"])


def test_a_pipeline_that_knows_no_colour_fails_where_colour_counts(drawer: Drawer) -> None:
    drawer.colour = "green"
    facts = compose("drawer", num=1, seed=0, device="cpu", call={}).facts
    tasks = {task: share["share"] for task, share in facts["tasks"].items()}
    assert tasks["single object"] >= 0.95
    assert tasks["two objects"] >= 0.95
    assert tasks["colours"] <= 0.15
    assert tasks["colour attribution"] == 0


def test_several_pictures_per_prompt(drawer: Drawer) -> None:
    rows = compose("drawer", num=2, seed=0, device="cpu").facts["pictures"]
    assert len(rows) == 240
    assert [row["prompt"] for row in rows[:4]] == ["a cube", "a cube", "a box", "a box"]


def test_a_model_that_reads_no_sentences_is_refused(drawer: Drawer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawer, "subject", "classes")
    with pytest.raises(UsageError, match="drawer draws classes, and the tasks are sentences"):
        compose("drawer", device="cpu")


def test_no_pictures_is_an_error(drawer: Drawer) -> None:
    with pytest.raises(UsageError, match="not pictures: stop after decoder"):
        compose("drawer", num=1, seed=0, device="cpu", call={"stop_after": "prior"})
