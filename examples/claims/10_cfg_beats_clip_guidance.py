"""Claim 10: classifier-free guidance beats guidance by a noised CLIP."""

from typing import Any

from chain import asked, renders, right
from lab import (
    Claim,
    Difference,
    Lab,
    Result,
    Value,
    embedded,
    frechet,
    main,
    open_pipeline,
    paired,
    pictures,
    resampled,
)

CLAIM = Claim(
    10,
    "cfg_beats_clip_guidance",
    "Classifier-free guidance beats guidance by CLIP",
    "Nichol et al. 2021, arXiv 2112.10741, section 5.1 and Table 1",
    "The bundled GLIDE draws the prompts of `t2i eval compose` by either, from the same noise. Each has the scale "
    "that was best on 40 other pictures (every third prompt, other seeds), chosen by what is right. What decides is "
    "the share that is right, for the caption similarity that people judged in the paper, and the Fréchet distance to "
    "renders of the same sentences in CLIP's embeddings, for photorealism.",
)
WAYS = {"classifier-free": ("decoder", {"clip": 0.0}), "CLIP": ("clip", {"decoder": 1.0})}
TRIED = 10**5  # first seed of the pictures that choose a scale


def draw(pipe: Any, texts: list[str], seed: int, way: str, scale: float, steps: int) -> Any:
    guide, rest = WAYS[way]
    parts = []
    for first in range(0, len(texts), 20):
        some = texts[first : first + 20]
        guidance = {**rest, guide: scale}
        parts += pipe(
            some, seed=seed + first, steps={"decoder": steps}, guidance=guidance, stop_after="decoder", progress=False
        ).images
    return pictures(type("Drawn", (), {"images": parts}))


def run(lab: Lab) -> Result:
    pipe, steps = open_pipeline("shapes-glide"), lab.choose("steps", 25, 1)
    scales = {
        "classifier-free": lab.choose("classifier-free scales", [1.5, 3.0, 6.0], [3.0]),
        "CLIP": lab.choose("CLIP scales", [1.0, 3.0, 10.0], [3.0]),
    }
    few, wanted = asked(1, lab.choose("every, choosing", 3, 60)), asked(1, lab.choose("every", 1, 60))
    tried, chosen = {}, {}
    for way, some in scales.items():
        for scale in some:
            images = draw(pipe, [p.text for p in few], TRIED, way, scale, steps)
            tried[f"{way} {scale:g}"] = sum(right(images, few)) / len(few)
        chosen[way] = max(some, key=lambda scale, way=way: tried[f"{way} {scale:g}"])
    lab.settings["right when choosing, %"] = [f"{name}: {share:.0f}" for name, share in tried.items()]
    true = embedded(renders(wanted, 10**6))
    share, z, rows = {}, {}, {}
    for way, scale in chosen.items():
        images = draw(pipe, [p.text for p in wanted], 0, way, scale, steps)
        share[way], z[way] = right(images, wanted), embedded(images)
        rows[f"{way}, {scale:g}"] = {
            "right, %": Value.of(share[way]),
            "Fréchet, CLIP": resampled(lambda i, way=way: frechet(z[way][i], true[i]), len(true)),
        }
    closer = resampled(lambda i: frechet(z["CLIP"][i], true[i]) - frechet(z["classifier-free"][i], true[i]), len(true))
    decides = [
        Difference("right, classifier-free - CLIP, points", paired(share["classifier-free"], share["CLIP"])),
        Difference("Fréchet distance, CLIP - classifier-free", closer),
    ]
    return Result(rows, decides, "Intervals are over pictures, paired by prompt and noise; the networks are one each.")


def plot(figure: Any, result: Result) -> None:
    ax = figure.subplots()
    for name, row in result.rows.items():
        x, y = row["Fréchet, CLIP"], row["right, %"]
        ax.errorbar([x.mean], [y.mean], xerr=[x.half], yerr=[y.half], fmt="o", capsize=3, label=name)
    ax.set(xlabel="Fréchet distance to renders, CLIP", ylabel="right, %")
    ax.legend()


if __name__ == "__main__":
    main(CLAIM, run, plot)
