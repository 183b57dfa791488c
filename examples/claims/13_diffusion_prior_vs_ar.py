"""Claim 13: the diffusion prior is better than the autoregressive one."""

from typing import Any

import torch.nn.functional as F
from chain import Chain, asked, renders, right
from lab import Claim, Difference, Lab, Result, Value, bars, embedded, frechet, main, paired, resampled

CLAIM = Claim(
    13,
    "diffusion_prior_vs_ar",
    "The diffusion prior is better than the autoregressive one",
    "Ramesh et al. 2022, arXiv 2204.06125, sections 2.2 and 5.2, Table 1",
    "Both bundled priors, of like size and trained on the same pictures, give embeddings for the prompts of `t2i eval "
    "compose`, the best of two each; the same decoder draws them from the same noise. What decides is what the paper "
    "measured, the share that is as asked (people's caption similarity there, the reader here) and a Fréchet distance "
    "to renders of the same sentences, here in CLIP's embeddings.",
)


def run(lab: Lab) -> Result:
    wanted = asked(lab.choose("pictures a prompt", 2, 1), lab.choose("every", 1, 60))
    texts, chain = [prompt.text for prompt in wanted], Chain()
    embeddings = {"diffusion prior": chain.embeddings(texts, 0), "AR prior": chain.embeddings(texts, 0, ar=True)}
    picture = chain.clip.encode_image(renders(wanted, 2 * 10**6)).detach()
    true = embedded(renders(wanted, 10**6))
    share, z, rows = {}, {}, {}
    for way, z_i in embeddings.items():
        images = chain.decode(texts, 0, z_i)
        share[way], z[way] = right(images, wanted), embedded(images)
        rows[way] = {
            "right, %": Value.of(share[way]),
            "Fréchet, CLIP": resampled(lambda i, way=way: frechet(z[way][i], true[i]), len(true)),
            "cosine with a render's embedding": Value.of(F.cosine_similarity(z_i, picture).tolist()),
        }
    closer = resampled(
        lambda i: frechet(z["AR prior"][i], true[i]) - frechet(z["diffusion prior"][i], true[i]), len(true)
    )
    decides = [
        Difference("right, diffusion - AR, points", paired(share["diffusion prior"], share["AR prior"])),
        Difference("Fréchet distance, AR - diffusion", closer),
    ]
    return Result(rows, decides, "Intervals are over pictures, paired by prompt and noise; the networks are one each.")


def plot(figure: Any, result: Result) -> None:
    left, middle, other = figure.subplots(1, 3)
    bars(left, result.rows, "right, %", "right, %")
    bars(middle, result.rows, "Fréchet, CLIP", "Fréchet distance to renders, CLIP")
    bars(other, result.rows, "cosine with a render's embedding", "cosine with a render's embedding")


if __name__ == "__main__":
    main(CLAIM, run, plot)
