"""`t2i data encode`: pictures become latents and captions become states, once, so that training holds no encoder.

B pictures of a batch · K captions of a picture · L tokens · W width of states · C channels, h w places of latents
"""

import hashlib
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from t2i.core import progress
from t2i.core.devices import fast_bfloat16
from t2i.core.errors import DataError, UsageError
from t2i.core.seed import Streams
from t2i.core.types import LatentCodec, TextEncoder
from t2i.data import shapes, writing
from t2i.data.config import DataConfig
from t2i.data.encoded import FACTS, Encoded, LatentFacts, StateFacts, read_facts
from t2i.data.opening import open_files
from t2i.data.shapes.captions import VERSION
from t2i.data.source import BadSample, Needs, Sample, Tally
from t2i.io.files import output_folder, write
from t2i.io.lock import sole_writer

log = logging.getLogger(__name__)


class Samples(Protocol):
    """Pictures with all of their captions, in a fixed order; `str` says what they are, for `lengths`."""

    bad: Tally

    def __len__(self) -> int: ...

    def take(self, rows: range) -> list[Sample]:
        """`image` (3, S, S), `captions` by kind, `key`, and what else is to be kept; without those that are unusable,
        which `bad` counts."""


class Scenes:
    """Scenes `seed …` of the shapes world."""

    def __init__(self, size: int, count: int, seed: int = 0, num_things: Mapping[int, float] | None = None) -> None:
        self.size, self.count, self.seed, self.bad = size, count, seed, Tally()
        self.num_things = num_things or shapes.NUM_THINGS

    def __len__(self) -> int:
        return self.count

    def __str__(self) -> str:
        things = dict(sorted(self.num_things.items()))
        return f"shapes, size {self.size}, seed {self.seed}, captions {VERSION}, num_things {things}"

    def take(self, rows: range) -> list[Sample]:
        drawn = shapes.batch([self.seed + row for row in rows], self.size, num_things=self.num_things)
        names = ("image", "captions", "key", "label")
        found: list[Sample] = [{name: drawn[name][i] for name in names} for i in range(len(rows))]
        return [sample | {"scene": json.loads(scene)} for sample, scene in zip(found, drawn["scene"], strict=True)]


class Files:
    """A folder or shards, with what captioners wrote of them; samples are named by their number, since a tar cannot
    hold every name."""

    def __init__(self, src: str, size: int, recaptions: str | None = None) -> None:
        config = DataConfig(source=src, size=size, val_fraction=0.0, recaptions=recaptions)
        self.src, self.size, self.bad = src, size, Tally()
        self.source = open_files(src, config, Needs(("image", "caption", "captions")))

    def __len__(self) -> int:
        return len(self.source.keys)

    def __str__(self) -> str:
        digest = hashlib.blake2b("\n".join(self.source.keys).encode(errors="surrogatepass"), digest_size=6).hexdigest()
        written = self.source.written
        captions = f", captions {written.digest()}" if written is not None else ""
        return f"{self.src}, size {self.size}, {len(self)} samples {digest}{captions}"

    def take(self, rows: range) -> list[Sample]:
        found = []
        for row in rows:
            try:
                sample = self.source.load(row, Streams([row], "encode"))
                captions = dict(sample["captions"])
                if captions.get("alt") == captions.get("text"):
                    captions.pop("text", None)  # the same by two names
                found.append(sample | {"key": f"{row:09d}", "from": sample["key"], "captions": captions})
            except BadSample as error:
                self.bad.add(error.reason, str(self.source.keys[row]))
        return found


def encode(
    out: str | Path,
    samples: Samples,
    autoencoder: LatentCodec,
    text: TextEncoder | None = None,
    *,
    device: torch.device | str = "cpu",
    shard_size: int = 1000,
    batch_size: int = 16,
) -> list[Path]:
    """Write `out/00000.tar` … with a progress bar, of each sample `KEY.latents.npy` (C, h, w) float16, `KEY.json` with
    its captions by kind, `KEY.cls` where it has a label and, with a `text` encoder, `KEY.states.npy` (K, L, W) float16
    and `KEY.states_mask.npy` (K, L) of its captions in the order of the JSON. `out/encoded.json` says what of.

    A shard appears whole or not at all, and one that is there is kept: a broken-off command continues.

    Returns the paths. Raises UsageError for shards in `out` of other samples or another encoder, DataError for a full
    disk, and where no sample is usable.
    """
    if shard_size < 1 or batch_size < 1:
        raise UsageError(f"shard_size and batch_size must be at least 1, got {shard_size} and {batch_size}")
    for part in (autoencoder, text):
        if isinstance(part, nn.Module):
            part.to(device).eval()
    paths = [Path(out) / f"{i:05d}.tar" for i in range(-(-len(samples) // shard_size))]
    count = kept = 0
    cut = Tally()
    with output_folder(out) as folder, sole_writer(folder), torch.no_grad():
        first = next((few for few in _few(samples, range(len(samples)), 1) if few), None)
        if first is None:
            raise DataError(f"none of the {len(samples)} samples is usable: {samples.bad}")
        samples.bad = Tally()
        facts = _facts(folder, first[0]["image"], autoencoder, text, device)
        settings = f"{samples}, shard_size {shard_size}, encoders {_digest(facts)}"
        there = writing.lengths(folder, settings)
        write(folder / FACTS, json.dumps(facts.model_dump(mode="json"), indent=2).encode() + b"\n")
        with progress.bar(len(samples), unit="img", desc=str(folder)) as bar:
            for number, path in enumerate(paths):
                rows = range(number * shard_size, min(len(samples), (number + 1) * shard_size))
                if there.get(path, 0) >= len(rows):
                    kept += len(rows)
                    bar.update(len(rows))
                    continue
                with writing.shard(path, settings, len(rows)) as tar:
                    for few in _few(samples, rows, batch_size, bar):
                        _count_cut(cut, few, text)
                        for key, files in _encoded(few, autoencoder, text, device):
                            writing.add(tar, key, files)
                            count += 1
    were = f", {kept} were there" if kept else ""
    log.info("%s: %d samples encoded%s, left out: %s", out, count, were, samples.bad if samples.bad.counts else "none")
    if cut.counts:
        log.warning("%s: %s", out, cut)
    return paths


def _few(samples: Samples, rows: range, num: int, bar: tqdm | None = None) -> Iterator[list[Sample]]:
    """Samples of some rows, at most so many at a time."""
    for start in range(rows.start, rows.stop, num):
        part = range(start, min(rows.stop, start + num))
        yield samples.take(part)
        if bar is not None:
            bar.update(len(part))


def _count_cut(cut: Tally, few: Sequence[Sample], text: TextEncoder | None) -> None:
    """Captions that are longer than a text encoder reads, if that says so, or have words that it does not know."""
    if (reader := getattr(text, "tokenizer", None)) is None:
        return
    for sample in few:
        for lines in sample["captions"].values():
            for line in [lines] if isinstance(lines, str) else lines:
                if reader.truncated(line):
                    cut.add(f"captions are longer than the {reader.room} tokens that are read", line)
                if unknown := reader.unknown(line):
                    cut.add("captions have words that the text encoder does not know, which read alike", unknown[0])


def _facts(
    folder: Path, image: Tensor, autoencoder: LatentCodec, text: TextEncoder | None, device: torch.device | str
) -> Encoded:
    """What the arrays are of; those of the folder where it has the same, UsageError where it has others."""
    side, factor = image.shape[-1], autoencoder.factor
    if side % factor:
        raise UsageError(f"pictures of side {side}, the autoencoder folds {factor} pixels")
    latents = LatentFacts(
        channels=autoencoder.channels, factor=factor, side=side // factor, fingerprint=autoencoder.fingerprint()
    )
    states = None
    if text is not None:
        context = getattr(getattr(text, "tokenizer", None), "context", None)
        states = StateFacts(width=text.width, context=context, fingerprint=text.fingerprint())
    ours, theirs = Encoded(latents=latents, states=states), read_facts(folder)
    if theirs is None:
        return ours
    if not theirs.same(ours):
        raise UsageError(
            f"{folder} was encoded with another autoencoder or text encoder, or in another size: choose another folder"
        )
    return theirs


def _digest(facts: Encoded) -> str:
    return hashlib.blake2b(facts.model_dump_json().encode(), digest_size=6).hexdigest()


def _encoded(
    few: Sequence[Sample], autoencoder: LatentCodec, text: TextEncoder | None, device: torch.device | str
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The key of every sample, and its files by their endings."""
    if not few:
        return
    on = torch.device(device)
    pictures = torch.stack([sample["image"] for sample in few]).to(on)
    with torch.autocast(on.type, torch.bfloat16, enabled=fast_bfloat16(on)):  # as training on pictures encodes them
        latents = autoencoder.encode_latents(pictures).float().cpu()
    kinds = [{k: [v] if isinstance(v, str) else list(v) for k, v in sample["captions"].items()} for sample in few]
    lines = [[line for of_kind in captions.values() for line in of_kind] for captions in kinds]
    read = text.encode_text([line for of_one in lines for line in of_one]) if text is not None else None
    at = 0
    for sample, z, captions, of_one in zip(few, latents, kinds, lines, strict=True):
        facts = {"captions": captions} | {name: sample[name] for name in ("scene", "from") if name in sample}
        files = {"latents.npy": _npy(z, sample), "json": json.dumps(facts).encode()}
        if "label" in sample:
            files["cls"] = str(int(sample["label"])).encode()
        if read is not None:
            mask = read.mask[at : at + len(of_one)].cpu()  # (K, L)
            longest = max(1, int(mask.sum(dim=1).max()))
            states = read.sequence[at : at + len(of_one), :longest].float().cpu()
            files["states.npy"] = _npy(states, sample)
            files["states_mask.npy"] = _bytes(mask[:, :longest].numpy())
        at += len(of_one)
        yield str(sample["key"]), files


def _npy(x: Tensor, sample: Sample) -> bytes:
    """An array in float16; DataError for numbers that are none."""
    half = x.half()
    if not half.isfinite().all():
        raise DataError(
            f"sample {sample.get('from', sample['key'])}: not finite in float16, at most {x.abs().max():.3g}"
        )
    return _bytes(half.numpy())


def _bytes(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
