"""DALL-E 2's chain taken apart, for the claims about its prior: sentences, embeddings, pictures, and their judges."""

import random
from collections.abc import Sequence
from typing import Any

import lab
import torch
from torch import Tensor

from t2i.core.seed import Streams
from t2i.data import shapes
from t2i.data.shapes.scene import COLOURS
from t2i.evals.compose import Prompt, load_reader, prompts, score
from t2i.stages.registry import load_stage, stage_of
from t2i.stages.stage import How, Inputs

BATCH = 20


def asked(num: int, every: int = 1) -> list[Prompt]:
    """The prompts of `t2i eval compose`, `num` of each in a row."""
    return [prompt for prompt in prompts()[::every] for _ in range(num)]


def renders(wanted: Sequence[Prompt], seed: int, size: int = 64) -> Tensor:
    """A picture of what each prompt asks for, (N, 3, size, size); colours that it leaves open are drawn by chance."""
    scenes = []
    for i, prompt in enumerate(wanted):
        rng = random.Random(seed + i)
        kinds = [(w.colour or rng.choice(COLOURS), w.shape) for w in prompt.wanted for _ in range(w.num)]
        scenes.append(shapes.compose(kinds, prompt.relation, rng))
    return shapes.render(scenes, size)


def right(images: Tensor, wanted: Sequence[Prompt]) -> list[float]:
    """100 for each picture that shows what its prompt asks for, by the bundled reader, else 0."""
    found = [things for part in images.split(64) for things in load_reader().read(part)]
    return [100.0 * score(prompt, things)[0] for prompt, things in zip(wanted, found, strict=True)]


class Chain:
    """The bundled DALL-E 2 up to its decoder, and its autoregressive prior; picture i has the same noise whatever it is
    drawn from."""

    def __init__(self) -> None:
        self.pipe = lab.open_pipeline("shapes")
        self.clip, self.prior, self.decoder = (self.pipe.parts[name] for name in ("clip", "prior", "decoder"))
        self.ar_prior: Any = load_stage(lab.ROOT / "weights/shapes-ar/prior", expect="ar_prior")
        self.plan, _ = self.pipe.planner.plan({"stop_after": "decoder"})

    @torch.no_grad()
    def text_embeddings(self, texts: Sequence[str]) -> Tensor:
        """CLIP's embeddings of sentences, (N, D)."""
        return torch.cat([self.clip.encode_text(part).pooled for part in _parts(texts)])

    @torch.no_grad()
    def embeddings(self, texts: Sequence[str], seed: int, *, ar: bool = False, candidates: int = 2) -> Tensor:
        """What a prior makes of sentences, (N, D)."""
        part = self.ar_prior if ar else self.prior
        seeds = _parts(range(seed, seed + len(texts)))
        return torch.cat(
            [self._draw("prior", part, t, s, candidates) for t, s in zip(_parts(texts), seeds, strict=True)]
        )

    @torch.no_grad()
    def decode(self, texts: Sequence[str], seed: int, z_i: Tensor | None) -> Tensor:
        """What the decoder makes of sentences and embeddings (N, D), or of sentences alone, (N, 3, S, S)."""
        embeddings = [None] * len(_parts(texts)) if z_i is None else list(z_i.split(BATCH))
        seeds = _parts(range(seed, seed + len(texts)))
        rows = zip(_parts(texts), seeds, embeddings, strict=True)
        return torch.cat([self._draw("decoder", self.decoder, t, s, 1, z) for t, s, z in rows])

    def _draw(
        self,
        place: str,
        part: Any,
        texts: Sequence[str],
        seeds: Sequence[int],
        candidates: int,
        z: Tensor | None = None,
    ) -> Tensor:
        inputs = Inputs(len(texts), list(texts), [""] * len(texts), self.pipe.encode_texts, z)
        how = How(self.plan[place], Streams(list(seeds), place), num_candidates=candidates)
        drawn: Tensor = stage_of(part).draw(part, inputs, how)
        return drawn


def _parts(values: Sequence[Any]) -> list[Sequence[Any]]:
    return [values[i : i + BATCH] for i in range(0, len(values), BATCH)]
