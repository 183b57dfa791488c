"""What DALL-E 2 does with pictures (Ramesh et al. 2022, arXiv 2204.06125, sections 3 and 4). It takes them apart into
its bipartite latent representation (z_i, x_T), and puts them together again with something changed on the way.

    picture ──CLIP image tower───────────▶ z_i    what CLIP sees in it
    picture, z_i ──DDIM, run backwards───▶ x_T    all the rest (Dhariwal & Nichol 2021, appendix F)
    (z_i, x_T) ──DDIM────────────────────▶ the picture again, and larger by the upsamplers

    reconstruct    DDIM with eta 0: the picture again
    variations     DDIM with eta > 0: others in which CLIP sees the same
    interpolate    slerp of two z_i, with that of both x_T, or with one x_T for all
    text_diff      slerp of z_i towards z_d = (z_t(after) - z_t(before)) / |…|, of z_t at unit length,
                   with x_T as it was
    probe          the first k principal components of z_i, with x_T as it was
    decode         z_i from elsewhere, without the prior

Functions of a pipeline whose decoder is conditioned on CLIP image embeddings; `DALLE2` has them as methods. A picture
is a square PIL picture of any size, the path of one, or what `encode` made of it: one that is used more than once
need not be taken apart again. The decoder is given no sentence.

All draw by DDIM, 50 steps in the decoder unless given; `guidance` is the decoder's, where only 1 brings a picture back
as it was; `seed` is of what is drawn at random, one for all pictures of a sequence, so that the upsamplers treat them
alike. A recipe tells how a picture was made, and does not repeat it without the one that it was made from.

Legend: N pictures · M embeddings · D width of CLIP embeddings · s side of the decoder's pictures in pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Unpack, cast

import torch
from PIL.Image import Image
from torch import Tensor

from t2i.core.errors import UsageError, explain, quoted
from t2i.core.paths import is_picture
from t2i.core.seed import Streams
from t2i.diffusion.sampling import Sampling
from t2i.diffusion.sphere import PrincipalComponents, slerp, text_direction
from t2i.pipeline.arguments import (
    MAX_PICTURES,
    Draw,
    Texts,
    positive_int,
    read_prompts,
    repeat_each,
    seeds_of,
    share,
)
from t2i.pipeline.inputs import Latent, read_embeddings, read_pictures
from t2i.pipeline.output import Output
from t2i.pipelines.latents import (
    Files,
    Picture,
    TakesEmbeddings,
    after_prior,
    embed,
    encode,
    plan_ddim,
    unit_norm,
)


def reconstruct(pipe: TakesEmbeddings, image: Files | Latent, **draw: Unpack[Draw]) -> Output:
    """Draw pictures again from what they were taken apart into; picture i uses seed + i in the upsamplers."""
    draw = _with(draw, guidance=1.0)
    plan, given = plan_ddim(pipe, draw), _given(pipe, image)
    draw["seed"] = seeds_of(draw.get("seed"), len(given))
    return _drawn(pipe, "reconstruct", _apart(pipe, given, plan, draw), draw)


def variations(
    pipe: TakesEmbeddings, image: Files | Latent, n: int = 4, *, eta: float = 1.0, **draw: Unpack[Draw]
) -> Output:
    """Draw pictures in which CLIP sees the same.

    Args:
        image: one or several; the order of what is drawn is picture by picture.
        n: variations of each.
        eta: 0…1, the share of fresh noise in every step; 0, without guidance, is `reconstruct`.
        draw: as in a call; variation i uses seed + i, or the i-th of a list, and guidance is the model's own.
    """
    eta = share("eta", eta)
    plan, given, n = plan_ddim(pipe, draw), _given(pipe, image), positive_int("n", n)
    draw["seed"] = seeds_of(draw.get("seed"), n * len(given))
    latent = _apart(pipe, given, plan, draw).repeat_each(n)
    return _drawn(pipe, "variations", latent, draw, {"eta": [eta] * len(latent)}, eta)


def interpolate(
    pipe: TakesEmbeddings,
    a: Picture,
    b: Picture | str,
    n: int = 7,
    *,
    noise: Literal["slerp", "fixed"] = "slerp",
    **draw: Unpack[Draw],
) -> Output:
    """Draw what lies between two pictures, or between a picture and a sentence: z_i = slerp(a, b, theta).

    Args:
        b: a sentence stands for the z_i that the prior draws for it, and for noise drawn at random. A string is one
            unless it is the path of a file, or ends as pictures' names do.
        n: pictures, with both ends.
        noise: "slerp" between the two x_T, so that the ends are the pictures themselves; "fixed", one drawn at random
            for all, which shows what z_i alone does.
    """
    if noise not in ("slerp", "fixed"):
        raise UsageError(f"unknown noise {quoted(noise)}; known are slerp and fixed")
    if positive_int("n", n, MAX_PICTURES) < 2:
        raise UsageError(f"n counts both ends of an interpolation, so it is at least 2, got {n}")
    draw = _with(draw, guidance=1.0)
    plan = plan_ddim(pipe, draw)
    draw["seed"] = seeds_of(draw.get("seed"), 1) * n
    sentence = b if isinstance(b, str) and not is_picture(b) else None
    source, aim = _one(pipe, a), _one(pipe, b) if sentence is None else sentence
    last = _end(pipe, aim, plan, draw, noise).repeat_each(n)  # this one first: a sentence may be refused
    first = _end(pipe, source, plan, draw, noise).repeat_each(n)
    theta = torch.linspace(0, 1, n)
    with explain("interpolate", UsageError):
        latent = Latent(slerp(first.z_i, last.z_i, theta), slerp(first.x_T, last.x_T, theta))
    notes = {"theta": theta.tolist()} | ({} if sentence is None else {"b": [sentence] * n})
    return _drawn(pipe, "interpolate", latent, draw, notes)


def text_diff(
    pipe: TakesEmbeddings,
    image: Picture,
    before: str,
    after: str,
    *,
    theta: float = 0.5,
    n: int = 5,
    **draw: Unpack[Draw],
) -> Output:
    """Change a picture by what a sentence says and another does not.

    Args:
        before: describes the picture, or is a dummy such as "a photo", or empty.
        after: what it is to become.
        theta: 0…1, how far z_i is turned in the last picture; the paper's sweeps end at 0.25 to 0.5.
        n: pictures, at even steps from theta 0, the picture itself as far as guidance lets it; 1 is the last alone.
        draw: as in a call; guidance 2 unless given: 1 begins with the picture itself, more turns more, and keeps less
            of what neither sentence is about.
    """
    read_prompts([before, after] if before != "" else [after], [pipe.clip.tokenizer])
    theta = share("theta", theta)
    thetas = torch.linspace(0, theta, n) if positive_int("n", n, MAX_PICTURES) > 1 else torch.tensor([theta])
    draw = _with(draw, guidance=2.0)
    plan = plan_ddim(pipe, draw)
    draw["seed"], given = seeds_of(draw.get("seed"), 1) * n, _one(pipe, image)
    with torch.no_grad():
        (texts,) = pipe.encode_texts([before, after])
        z_t = texts.pooled.float().cpu()  # (2, D)
    with explain("text_diff", UsageError):
        z_d = text_direction(z_t[1:], z_t[:1])  # (1, D)
    latent = _apart(pipe, given, plan, draw).repeat_each(n)
    aim = z_d * latent.z_i.norm(dim=1, keepdim=True)  # (N, D), as long as z_i
    latent = replace(latent, z_i=slerp(latent.z_i, aim, thetas))
    notes = {"before": [before] * n, "after": [after] * n, "theta": thetas.tolist()}
    return _drawn(pipe, "text_diff", latent, draw, notes)


def probe(
    pipe: TakesEmbeddings,
    image: Picture,
    embeddings: Tensor,
    components: Sequence[int] = (2, 5, 10, 20, 40, 80),
    **draw: Unpack[Draw],
) -> Output:
    """Show what the first principal components of CLIP's embeddings hold of a picture (section 4).

    Args:
        embeddings: (M, D) of other pictures, on which the components are measured, such as `embed(paths)`; a few times
            more than the components asked for.
        components: how many are kept, for each picture drawn; all others are at their mean.
    """
    draw = _with(draw, guidance=1.0)
    plan = plan_ddim(pipe, draw)
    with explain("probe", UsageError):
        axes = PrincipalComponents.of(read_embeddings(embeddings, pipe.clip.dim, unit_norm=False))
        if not isinstance(components, Sequence) or not components:
            raise ValueError(f"components must be a list of numbers, got {quoted(components)}")
        axes.keep(axes.mean[None], max(positive_int("components", num) for num in components))
    given = _one(pipe, image)
    draw["seed"] = seeds_of(draw.get("seed"), 1) * len(components)
    source = _apart(pipe, given, plan, draw)
    z_i = torch.cat([axes.keep(source.z_i, num) for num in components])
    latent = replace(source.repeat_each(len(components)), z_i=z_i)
    return _drawn(pipe, "probe", latent, draw, {"components": list(components)})


# -- what they share ---------------------------------------------------------------------------------------------------


def _with(draw: Draw, guidance: float) -> Draw:
    """A call's arguments with a guidance of its own, unless one is given."""
    return cast("Draw", {"guidance": guidance, **draw})


def _given(pipe: TakesEmbeddings, image: Any) -> Latent | list[Image]:
    """What a user gave, opened and checked."""
    if not isinstance(image, Latent):
        return read_pictures(image)
    return image.check(pipe.clip.dim, pipe.parts["decoder"].config.image_size, unit_norm(pipe))


def _one(pipe: TakesEmbeddings, image: Any) -> Latent | list[Image]:
    """The same, of a single picture."""
    given = _given(pipe, image)
    if len(given) != 1:
        raise UsageError(f"expected one picture, got {len(given)}")
    return given


def _apart(pipe: TakesEmbeddings, given: Latent | list[Image], plan: Mapping[str, Sampling], draw: Draw) -> Latent:
    """Taken apart, unless it is already."""
    if isinstance(given, Latent):
        return given
    how: dict[str, Any] = {key: draw[key] for key in ("callback", "progress", "max_batch") if key in draw}  # type: ignore[literal-required]
    return encode(pipe, given, steps=plan["decoder"].steps, **how)


def _end(
    pipe: TakesEmbeddings, given: Latent | list[Image] | str, plan: Mapping[str, Sampling], draw: Draw, noise: str
) -> Latent:
    """An end of an interpolation; nothing is inverted whose x_T is not asked for."""
    if not isinstance(given, str) and noise == "slerp":
        return _apart(pipe, given, plan, draw)
    side, seed = pipe.parts["decoder"].config.image_size, cast("list[int]", draw["seed"])[0]
    x_T = Streams([seed], "decoder").normal(3, side, side)
    if isinstance(given, Latent):
        return replace(given, x_T=x_T)
    if not isinstance(given, str):
        return Latent(embed(pipe, given, max_batch=draw.get("max_batch", 8)), x_T)
    if "prior" not in pipe.parts:
        raise UsageError("this model has no prior, so it draws no sentences; interpolate between pictures")
    how: dict[str, Any] = {key: draw[key] for key in ("callback", "progress") if key in draw}  # type: ignore[literal-required]
    drawn = pipe(given, seed=seed, stop_after="prior", **how)
    assert drawn.embeddings is not None
    return Latent(drawn.embeddings, x_T)


def _drawn(
    pipe: TakesEmbeddings,
    task: str,
    latent: Latent,
    draw: Draw,
    notes: Mapping[str, list[Any]] | None = None,
    eta: float = 0.0,
) -> Output:
    """The pictures of `latent`; `notes` is what was asked for each of them, for the recipe."""
    nothing = repeat_each([""], len(latent))
    texts = Texts(nothing, nothing, [False] * len(latent))
    sampled = after_prior(pipe)
    return pipe.run(pipe.request(draw, texts=texts, notes=notes, source=latent, task=task, sampled=sampled, eta=eta))
