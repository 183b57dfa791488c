"""Claim 15: drawing two embeddings and keeping the one nearer to the sentence helps."""

from typing import Any

import torch.nn.functional as F
from chain import Chain, asked, renders, right
from lab import Claim, Difference, Lab, Result, Value, bars, main, paired

CLAIM = Claim(
    15,
    "best_of_two",
    "Of two embeddings of the prior the one with the higher dot product with the sentence is the better",
    "Ramesh et al. 2022, arXiv 2204.06125, section 2.2",
    "The bundled diffusion prior gives one embedding, or the better of two, for the prompts of `t2i eval compose`. "
    "The paper does it to improve quality during sampling and gives no number, so what decides is what a prior is "
    "for: the cosine of its embedding with those of renders of the sentence (mean of four). Whether the decoder draws "
    "more of it right is shown beside it and does not decide.",
)
RENDERS = 4


def run(lab: Lab) -> Result:
    wanted = asked(lab.choose("embeddings a prompt", 8, 1), lab.choose("every", 1, 30))
    texts, chain = [prompt.text for prompt in wanted], Chain()
    shown = [renders(wanted, (2 + i) * 10**6) for i in range(lab.choose("renders", RENDERS, 1))]
    true = [chain.clip.encode_image(images).detach() for images in shown]
    drawn = lab.choose("decoded", 240, 2)
    few = list(range(0, len(texts), max(1, len(texts) // drawn)))[:drawn]
    near, rows = {}, {}
    for way, candidates in {"one": 1, "best of two": 2}.items():
        z_i = chain.embeddings(texts, 0, candidates=candidates)
        cosines = sum(F.cosine_similarity(z_i, z) for z in true) / len(true)
        near[way] = cosines.tolist()
        images = chain.decode([texts[i] for i in few], 0, z_i[few])
        rows[way] = {
            "cosine with renders": Value.of(near[way]),
            "drawn right, %": Value.of(right(images, [wanted[i] for i in few])),
        }
    decides = [Difference("cosine, best of two - one", paired(near["best of two"], near["one"]))]
    return Result(rows, decides, "Intervals are over embeddings, paired by prompt; the first of the two is the one.")


def plot(figure: Any, result: Result) -> None:
    left, other = figure.subplots(1, 2)
    bars(left, result.rows, "cosine with renders", "cosine with renders")
    bars(other, result.rows, "drawn right, %", "drawn right, %")


if __name__ == "__main__":
    main(CLAIM, run, plot)
