"""What of a picture survives its latents? Held-out renders through an autoencoder and back, by its own decoder and by a
consistency decoder: whole pictures, and the things in them that have fine patterns.

B pictures · C channels of latents
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from t2i.core.devices import device_of
from t2i.core.errors import UsageError
from t2i.core.measures import psnr
from t2i.core.progress import bar
from t2i.core.seed import Streams
from t2i.data.shapes.scene import Scene, box
from t2i.evals.batches import held_out
from t2i.evals.compose import load_reader
from t2i.evals.report import Report, Score
from t2i.stages.autoencoder.perceptual import Distance
from t2i.stages.consistency_decoder.sample import sample
from t2i.stages.follow import check_same
from t2i.stages.registry import load_stage

PATTERNS = ("checkered", "striped")
MEASURES = ("psnr", "psnr of patterns", "distance of patterns")
_LEAST = 16  # pixels of a side of what is judged as a pattern
_GRID = 8  # pixels of the reader's coarsest features
_BATCH = 8


def latents(
    autoencoder: str,
    consistency: str | None = None,
    *,
    num: int = 200,
    seed: int = 0,
    size: int = 256,
    device: str = "auto",
) -> Report:
    """Encode held-out renders, decode them, and compare.

    Args:
        autoencoder: folder of a stage. consistency: folder of a consistency decoder that was trained beside it.
        num: renders. seed: of the first; render i uses seed + i, also for the noise of the consistency decoder.
        size: side of the renders, in pixels.

    PSNR is in dB. Patterns are checkered and striped things, cut out by their boxes, at least 16 px wide and high;
    their distance is LPIPS' formula without learned weights (Zhang et al. 2018, equation 1) over the features of the
    bundled reader. The facts hold every value.

    Raises UsageError for a size that the autoencoder does not take, and for one that the consistency decoder was not
    trained with.
    """
    on = device_of(device)
    codec: Any = load_stage(autoencoder, expect="autoencoder").to(on)
    if size % codec.factor:
        raise UsageError(f"size={size} must be a multiple of {codec.factor}, the pixels that share a place of latents")
    decoder: Any = None
    ways = ["autoencoder"]
    if consistency is not None:
        decoder = load_stage(consistency, expect="consistency_decoder").to(on)
        check_same(decoder.config.latents.fingerprint, codec.fingerprint(), f"autoencoder={autoencoder}")
        ways.append("consistency decoder")
    distance = Distance(load_reader(on))
    values: dict[str, dict[str, list[float]]] = {way: {measure: [] for measure in MEASURES} for way in ways}
    with bar(num, unit="picture", leave=False) as told, torch.inference_mode():
        for seeds, scenes, pictures in held_out(num, size, seed=seed, batch_size=_BATCH):
            truth = pictures.to(on)  # (B, 3, size, size)
            z = codec.encode_latents(truth)  # (B, C, size / factor, size / factor)
            drawn = {"autoencoder": codec.decode_latents(z).clamp(-1, 1)}
            if decoder is not None:
                drawn["consistency decoder"] = sample(decoder, z, Streams(seeds, "consistency"))
            for way, found in drawn.items():
                _compare(values[way], found, truth, scenes, distance)
            told.update(len(seeds))
    scores = {way: {measure: Score.of(found) for measure, found in row.items()} for way, row in values.items()}
    facts = {
        "autoencoder": autoencoder,
        "consistency": consistency,
        "size": size,
        "seed": seed,
        "values": values,
        "scores": {way: {measure: score._asdict() for measure, score in row.items()} for way, row in scores.items()},
    }
    return Report(table(scores), facts)


def _compare(
    found: dict[str, list[float]], drawn: Tensor, truth: Tensor, scenes: Sequence[Scene], distance: nn.Module
) -> None:
    """Add what each measure says of pictures (B, 3, S, S), and of the patterned things in them."""
    found["psnr"] += psnr(drawn, truth).tolist()
    for i, scene in enumerate(scenes):
        for rows, columns in _patterned(scene, truth.shape[-1]):
            a, b = drawn[i : i + 1, :, rows, columns], truth[i : i + 1, :, rows, columns]
            found["psnr of patterns"].append(float(psnr(a, b)))
            found["distance of patterns"].append(float(distance(a, b)))


def _patterned(scene: Scene, size: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of checkered and striped things, whole cells of the reader's grid."""
    for thing in scene.things:
        if thing.pattern not in PATTERNS:
            continue
        x0, y0, x1, y1 = (min(max(round(side * size), 0), size) for side in box(thing, scene.camera))
        if min(x1 - x0, y1 - y0) >= _LEAST:
            yield _whole(y0, y1), _whole(x0, x1)


def _whole(start: int, end: int) -> slice:
    return slice(start, start + (end - start) // _GRID * _GRID)


def table(scores: dict[str, dict[str, Score]]) -> str:
    """Lines to print: a row for each decoder."""
    first = next(iter(scores.values()))
    lines = [f"{'decoder':<22}" + "".join(f"{measure:>24}" for measure in MEASURES)]
    for way, row in scores.items():
        lines.append(f"{way:<22}" + "".join(f"{row[measure]!s:>24}" for measure in MEASURES))
    lines.append(
        f"{first['psnr'].num} held-out renders, {first['psnr of patterns'].num} checkered and striped things; "
        "PSNR in dB, distance in the reader's features (less is better), ± 95 %"
    )
    return "\n".join(lines)
