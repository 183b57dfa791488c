"""`t2i eval report`: models side by side on one page. What they draw, what is right, how far it is from what it should
be, and what guidance trades.

N pictures
"""

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from t2i.core.errors import UsageError
from t2i.core.progress import bar
from t2i.evals import compose, page
from t2i.evals.page import Cell, Point
from t2i.evals.report import Score
from t2i.evals.sets import Scenes, pixels
from t2i.io.files import output_folder, writable_file, write
from t2i.io.images import from_pil, open_image, save_png
from t2i.measures.diversity import pair_distance
from t2i.measures.extractors import open_extractor
from t2i.measures.measure import Number, measure
from t2i.measures.statistics import Facts, Statistics
from t2i.pipeline.base import Pipeline
from t2i.pipeline.cost import check_pictures
from t2i.version import __version__

PROMPTS = (
    "a red cube", "a blue sphere and a green cone", "three yellow toruses", "a purple pyramid on top of a white cube",
    "a black cylinder to the left of an orange sphere", "a small striped brown cube",
)  # fmt: skip
"""What every model draws for the eye, unless others are given."""


@dataclass(frozen=True)
class Plan:
    """How much is drawn.

    Args:
        prompts: drawn for the eye, with each of `seeds`, and for the frontier.
        compose: pictures of each of `t2i eval compose`'s prompts; 0 for none.
        num: pictures of captions of held-out scenes, which are measured against these scenes; 0 for none.
        scales: guidance of the decoder, for the frontier; none for no plot. each: pictures of a prompt at each scale.
        extractor: a CLIP, see `open_extractor`.
        steps: as in a call.
    """

    prompts: tuple[str, ...] = PROMPTS
    seeds: tuple[int, ...] = (0, 1)
    compose: int = 1
    num: int = 100
    scales: tuple[float, ...] = (1.0, 2.0, 4.0)
    each: int = 4
    extractor: str = "clip"
    steps: Any = None
    batch: int = 16


class Model:
    """A pipeline whose pictures are kept in files until the page is written, so that a killed report goes on."""

    def __init__(self, name: str, work: Path, device: str, plan: Plan) -> None:
        self.name, self.work, self.plan = name, work, plan
        self.pipe: Any = Pipeline.from_pretrained(name, device=device)
        if self.pipe.subject != "prompt":
            raise UsageError(f"{name} draws {self.pipe.subject}, and a report's models draw sentences: leave it out")
        self.call: dict[str, Any] = {"stop_after": self.pipe.judged}
        if plan.steps is not None:
            self.call["steps"] = plan.steps
        check_pictures(self.pipe, self.call["stop_after"])
        self.seconds, self.num, self.recipes = 0.0, 0, dict[str, Any]()

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], what: str, **more: Any) -> list[Image.Image]:
        """A picture of each prompt with its seed."""
        call = {**self.call, **more}
        mark = json.dumps([self.name, self.pipe.weights, call], sort_keys=True)
        rows = list(zip(prompts, seeds, strict=True))
        paths = [self.work / f"{hashlib.sha256(f'{mark}{row}'.encode()).hexdigest()[:24]}.png" for row in rows]
        todo = [i for i, path in enumerate(paths) if not path.exists()]
        with bar(len(todo), unit="picture", desc=f"{self.name}: {what}", leave=False) as told:
            for first in range(0, len(todo), self.plan.batch):
                some, began = todo[first : first + self.plan.batch], time.perf_counter()
                drawn = self.pipe([prompts[i] for i in some], seed=[seeds[i] for i in some], progress=False, **call)
                self.seconds += time.perf_counter() - began
                self.num += len(some)
                self.recipes.setdefault(what, drawn.recipe)
                for i, image in zip(some, drawn.images, strict=True):
                    save_png(image, paths[i])
                told.update(len(some))
        return [open_image(path) for path in paths]

    @property
    def about(self) -> dict[str, Any]:
        """What its pictures depend on."""
        plan, scales = self.pipe.planner.plan(self.call)
        return {
            "model": self.name,
            "weights": self.pipe.weights,
            "stages": list(self.pipe.parts),
            "steps": {name: sampling.steps for name, sampling in plan.items()},
            "guidance": {**{name: sampling.guidance for name, sampling in plan.items()}, **scales},
            "call": self.call,
            "seconds a picture": round(self.seconds / self.num, 2) if self.num else "drawn before",
        }


def report(names: Sequence[str], out: Path, plan: Plan = Plan(), *, device: str = "auto", command: str = "") -> str:
    """Draw, measure and write the page; a line that says where it is.

    Pictures are kept in `OUT.parts` until the page is written.

    Raises UsageError for models that are named twice or draw no sentences, and for a file that cannot be written.
    """
    if not names or len({*names}) < len(names):
        raise UsageError(f"models: expected different names, got {', '.join(names) or 'none'}")
    writable_file(out, "--out")
    extractor = open_extractor(plan.extractor, device)
    if not hasattr(extractor, "embed_text"):
        raise UsageError(f"extractor {plan.extractor}: a report needs one that reads captions, such as clip")
    work = out.with_name(out.name + ".parts")
    with output_folder(work):
        models = [Model(name, work, device, plan) for name in names]
        parts = [page.paragraph(_head(names)), _samples(models, plan)]
        if plan.compose:
            parts.append(_compose(models, plan))
        if plan.num:
            parts.append(_measures(models, plan, extractor))
        if plan.scales:
            parts.append(_frontier(models, plan, extractor))
        parts.append(_recipes(models, plan, extractor, command))
    write(out, page.page("Models side by side", parts).encode())
    shutil.rmtree(work, ignore_errors=True)
    return f"{out}: {', '.join(names)} side by side"


def _head(names: Sequence[str]) -> str:
    return (
        f"{', '.join(names)}, drawn and measured alike: the same prompts, seeds and captions. Intervals are 95 % where "
        "nothing else is said. All that a number depends on stands at the end of the page."
    )


def _samples(models: Sequence[Model], plan: Plan) -> str:
    rows = [(prompt, seed) for prompt in plan.prompts for seed in plan.seeds]
    prompts, seeds = [prompt for prompt, _ in rows], [seed for _, seed in rows]
    drawn = [model.draw(prompts, seeds, "samples") for model in models]
    cells = [(prompt, f"seed {seed}", [of[i] for of in drawn]) for i, (prompt, seed) in enumerate(rows)]
    return page.section("Samples", page.gallery([model.name for model in models], cells))


def _compose(models: Sequence[Model], plan: Plan) -> str:
    asked = [prompt for prompt in compose.prompts() for _ in range(plan.compose)]
    texts, seeds, rows = [prompt.text for prompt in asked], list(range(len(asked))), dict[str, list[Cell]]()
    for model in models:
        reader = compose.load_reader(model.pipe.device)
        images = torch.stack([from_pil(image) for image in model.draw(texts, seeds, "compose")])
        found = [things for part in images.split(32) for things in reader.read(part.to(model.pipe.device))]
        verdicts = [(p, compose.score(p, things)[0]) for p, things in zip(asked, found, strict=True)]
        shares = compose.summary(verdicts)
        for task, s in shares.items():
            rows.setdefault(task, []).append(Cell(f"{s.share:.1%}", f"{s.low:.0%} … {s.high:.0%}"))
        rows.setdefault("mean of the tasks", []).append(Cell(f"{compose.mean(shares):.1%}"))
    told = (
        f"Right by the bundled reader of scenes, {plan.compose} picture(s) of each of {len(compose.prompts())} prompts."
    )
    names = [model.name for model in models]
    return page.section("What is right", page.table("task", names, rows), page.paragraph(told))


def _measures(models: Sequence[Model], plan: Plan, extractor: Any) -> str:
    scenes = Scenes(plan.num)
    captions, seeds = scenes.texts(0, plan.num), list(range(plan.num))
    real = _seen(extractor, scenes.load(0, plan.num).images, captions, "held-out scenes")
    rows, told = dict[str, list[Cell]](), dict[str, None]()
    for model in models:
        images = [pixels(image) for image in model.draw(captions, seeds, "captions of held-out scenes")]
        names = ("frechet", "kid", "precision", "clip", "diversity")
        for number in measure(names, _seen(extractor, images, captions, model.name), real):
            rows.setdefault(number.label, []).append(_cell(number))
            told |= dict.fromkeys(number.warnings)
    about = f"{plan.num} captions of held-out scenes, against renders of these scenes, seen by {extractor.name}."
    spread = "KID has its standard deviation over subsets, where there are any."
    notes = [page.paragraph(text) for text in (f"{about} {spread}", *told)]
    return page.section("How far from what it should be", page.table("", [m.name for m in models], rows), *notes)


def _frontier(models: Sequence[Model], plan: Plan, extractor: Any) -> str:
    prompts = [prompt for prompt in plan.prompts for _ in range(plan.each)]
    seeds, curves = list(range(len(prompts))), dict[str, list[Point]]()
    for model in models:
        stage = "decoder" if "decoder" in model.pipe.parts else list(model.pipe.parts)[-1]
        for scale in plan.scales:
            images = model.draw(prompts, seeds, f"guidance {scale:g}", guidance={stage: scale})
            z = torch.cat([extractor(pixels(image)[None]).pool.cpu() for image in images])
            text = extractor.embed_text(prompts).cpu()
            fit = Score.of((100 * torch.nn.functional.cosine_similarity(z, text)).tolist())
            apart = Score.of([pair_distance(part).mean for part in z.split(plan.each)])
            point = Point(apart.mean, fit.mean, _finite(apart.half), _finite(fit.half), f"{scale:g}")
            curves.setdefault(model.name, []).append(point)
    told = (
        f"{plan.each} pictures of each of the {len(plan.prompts)} prompts above at each scale of guidance, which "
        "stands beside its point. Up is closer to the prompt (CLIP score), right is more different from each other "
        f"(mean cosine distance of two pictures of one prompt), both by {extractor.name}; bars are 95 % over pictures "
        "and over prompts."
    )
    picture = page.plot(curves, "diversity: distance of two pictures of one prompt", "fidelity: CLIP score")
    rows = {
        f"{name}, guidance {p.label}": [
            Cell(f"{p.y:.2f}", f"± {p.half_y:.2f}"),
            Cell(f"{p.x:.3f}", f"± {p.half_x:.3f}"),
        ]
        for name, points in curves.items()
        for p in points
    }
    numbers = page.table("", ["CLIP score", "diversity"], rows)
    return page.section("What guidance trades", f'<div class="wide">{picture}</div>', page.paragraph(told), numbers)


def _recipes(models: Sequence[Model], plan: Plan, extractor: Any, command: str) -> str:
    machine = f"t2i {__version__}, torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}"
    about = {
        "command": command, "drawn and measured": time.strftime("%Y-%m-%d %H:%M"), "machine": machine,
        "plan": asdict(plan), "extractor": extractor.name, "its weights": extractor.sha256,
        "its resize": extractor.resize,
    }  # fmt: skip
    parts = [page.details("this page", json.dumps(about, indent=1, default=str))]
    parts += [page.details(model.name, json.dumps(model.about, indent=1, default=str)) for model in models]
    return page.section("Recipe", *parts)


def _seen(extractor: Any, images: Sequence[Tensor], captions: Sequence[str], source: str) -> Statistics:
    facts = Facts(extractor.name, extractor.sha256, extractor.resize, extractor.dim, extractor.num_classes, source)
    found = Statistics(facts, len(images))
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        found.add(torch.tensor([i]), extractor(image[None]), extractor.embed_text([caption]))
    return found


def _cell(number: Number) -> Cell:
    return Cell(f"{number.value:.4g}", "" if number.half is None else f"± {number.half:.2g}")


def _finite(x: float) -> float:
    return x if x == x else 0.0
