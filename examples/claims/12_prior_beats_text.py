"""Claim 12: a prior beats telling the decoder the sentence's own embedding, and telling it the caption alone."""

from typing import Any

from chain import Chain, asked, renders, right
from lab import Claim, Difference, Lab, Result, Value, bars, embedded, frechet, main, paired, resampled

CLAIM = Claim(
    12,
    "prior_beats_text",
    "A prior beats feeding the decoder CLIP's embedding of the sentence, and the caption alone",
    "Ramesh et al. 2022, arXiv 2204.06125, section 5.1",
    "The bundled decoder draws the prompts of `t2i eval compose` from the caption alone, with CLIP's embedding of the "
    "sentence where that of a picture belongs, and with what the diffusion prior makes of it; the noise is the same. "
    "The paper asked people for photorealism and for caption similarity; here the reader of scenes says what is "
    "right, and the Fréchet distance to renders of the same sentences is taken in CLIP's embeddings.",
)


def run(lab: Lab) -> Result:
    num = lab.choose("pictures a prompt", 2, 1)
    wanted = asked(num, lab.choose("every", 1, 60))
    texts, chain = [prompt.text for prompt in wanted], Chain()
    ways = {
        "caption alone": None,
        "text embedding": chain.text_embeddings(texts),
        "diffusion prior": chain.embeddings(texts, 0),
    }
    shown = {way: chain.decode(texts, 0, z) for way, z in ways.items()}
    true = embedded(renders(wanted, 10**6))
    z = {way: embedded(images) for way, images in shown.items()}
    share = {way: right(images, wanted) for way, images in shown.items()}
    rows = {
        way: {
            "right, %": Value.of(share[way]),
            "Fréchet, CLIP": resampled(lambda i, way=way: frechet(z[way][i], true[i]), len(true)),
        }
        for way in ways
    }
    prior, decides = "diffusion prior", []
    for way in ("text embedding", "caption alone"):
        decides.append(Difference(f"right, prior - {way}, points", paired(share[prior], share[way])))
        closer = resampled(lambda i, way=way: frechet(z[way][i], true[i]) - frechet(z[prior][i], true[i]), len(true))
        decides.append(Difference(f"Fréchet distance, {way} - prior", closer))
    return Result(rows, decides, "Intervals are over pictures, paired by prompt and noise; the networks are one each.")


def plot(figure: Any, result: Result) -> None:
    left, other = figure.subplots(1, 2)
    bars(left, result.rows, "right, %", "right, %")
    bars(other, result.rows, "Fréchet, CLIP", "Fréchet distance to renders, CLIP")


if __name__ == "__main__":
    main(CLAIM, run, plot)
