"""Claim 14: guidance costs unCLIP less diversity than GLIDE."""

from statistics import fmean
from typing import Any

import lab as laboratory
from chain import asked, right
from lab import Claim, Difference, Lab, Result, Value, diversity, embedded, main, pictures, resampled

CLAIM = Claim(
    14,
    "unclip_keeps_diversity",
    "Guidance costs unCLIP less diversity than GLIDE",
    "Ramesh et al. 2022, arXiv 2204.06125, section 5.3, Figures 9 and 10",
    "The bundled DALL-E 2 (unCLIP) and GLIDE draw the same prompts of `t2i eval compose` at rising scales of the "
    "decoder's classifier-free guidance, 1 being none; the prior's guidance stays. Diversity is the mean cosine "
    "distance in CLIP's embeddings of pictures of one prompt. What decides is which share of it each loses from scale "
    "1 to scale 4: GLIDE's must be larger.",
)
MODELS = {"unCLIP": "shapes", "GLIDE": "shapes-glide"}


def run(lab: Lab) -> Result:
    num, scales = lab.choose("pictures a prompt", 4, 2), lab.choose("scales", [1.0, 2.0, 4.0], [1.0, 4.0])
    wanted = asked(num, lab.choose("every", 4, 60))
    texts = [prompt.text for prompt in wanted]
    found: dict[str, dict[float, list[float]]] = {}
    rows: dict[str, dict[str, Value]] = {}
    more: dict[str, Any] = {"steps": {"decoder": 2}} if lab.tiny else {}
    for name, model in MODELS.items():
        pipe, found[name] = laboratory.open_pipeline(model), {}
        for scale in scales:
            how = {"seed": 0, "stop_after": "decoder", "progress": False, "guidance": {"decoder": scale}}
            images = pictures(pipe(texts, **how, **more))
            found[name][scale] = diversity(embedded(images), num)
            rows[f"{name}, scale {scale:g}"] = {
                "diversity": Value.of(found[name][scale]),
                "right, %": Value.of(right(images, wanted)),
            }

    def lost(name: str, i: Any) -> float:
        before, after = ([found[name][scale][k] for k in i.tolist()] for scale in (1.0, 4.0))
        return 100 * (1 - fmean(after) / fmean(before))

    count = len(found["GLIDE"][1.0])
    for name in MODELS:
        rows[f"{name}, scale 4"]["diversity lost, %"] = resampled(lambda i, name=name: lost(name, i), count, 1000)
    less = resampled(lambda i: lost("GLIDE", i) - lost("unCLIP", i), count, 1000)
    decides = [Difference("diversity lost from scale 1 to 4, GLIDE - unCLIP, points", less)]
    covers = "Intervals are over prompts, the same for both; the networks are one each."
    return Result(rows, decides, covers, {"scales": scales})


def plot(figure: Any, result: Result) -> None:
    axes = figure.subplots(1, 2)
    scales = result.data["scales"]
    for ax, what in zip(axes, ("diversity", "right, %"), strict=True):
        for name in MODELS:
            values = [result.rows[f"{name}, scale {scale:g}"][what] for scale in scales]
            ax.errorbar(scales, [v.mean for v in values], [v.half for v in values], fmt="o-", capsize=4, label=name)
        ax.set(xlabel="guidance scale", ylim=0, ylabel="cosine distance of pictures, CLIP" if ax is axes[0] else what)
    axes[0].legend()


if __name__ == "__main__":
    main(CLAIM, run, plot)
