"""The decoder in a chain and in a training: what it is conditioned on there, and what follows from its neighbours.

B pictures of a batch · L tokens
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from t2i.core.errors import UsageError
from t2i.core.types import StepCallback, TextFeatures, Tokenizer
from t2i.data.config import DataConfig
from t2i.nn.older import FLAT
from t2i.nn.ports import ClipImageConfig, Given, PortsConfig
from t2i.stages.decoder.latent import check_data, latents_of, states_port, unsaid
from t2i.stages.decoder.model import Decoder, DecoderConfig
from t2i.stages.decoder.sample import invert, sample
from t2i.stages.follow import check_side, class_port, follow, text_port
from t2i.stages.stage import ClipFacts, Example, How, Inputs, Neighbours
from t2i.text.tokenizers import tokenize

_CLIP_CONTEXT = 77  # tokens of OpenAI's CLIP; networks that read its states have no limit of their own
_T5_CONTEXT = 128
_OVER_WORDS = ("ports.text.encoder.transformer.", "ports.text.encoder.norm.", "ports.text.vector.")


def draw(model: Decoder, inputs: Inputs, how: How) -> Tensor:
    """Pictures (B, 3, S, S) of what the network has ports for; guidance moves away from the negative sentence, the null
    embedding and the absent class."""
    guided, ports = how.sampling.guidance != 1, model.config.ports
    labels = inputs.classes if ports.classes is not None else None
    masked = inputs.masked(model.config.image_size) if inputs.masked and ports.masked is not None else None
    cond, *negative = _states(model, inputs, inputs.prompts, *([inputs.negatives] if guided else []))
    tokens = _tokens(model, inputs.prompts)
    given = Given(inputs.num, text=tokens, clip_image=inputs.z_i, classes=labels, masked=masked, **cond)
    condition = model.condition(given)
    null = None
    if guided:
        absent = None
        if ports.classes is not None:
            absent = torch.full((inputs.num,), ports.classes.num, device=model.unet.conv_in.weight.device)
        tokens = _tokens(model, inputs.negatives)
        null = model.condition(Given(inputs.num, text=tokens, classes=absent, masked=masked, **negative[0]))
    return sample(
        model, condition, how.streams, how.sampling, null=null, hooks=how.hooks, x_T=how.x_T, callback=how.callback
    )


def inverted(
    model: Decoder,
    inputs: Inputs,
    x_0: Tensor,
    steps: int | str,
    *,
    corrections: int = 0,
    callback: StepCallback | None = None,
) -> Tensor:
    """See `Invert`."""
    (cond,) = _states(model, inputs, inputs.prompts)
    given = Given(inputs.num, text=_tokens(model, inputs.prompts), clip_image=inputs.z_i, **cond)
    return invert(model, model.condition(given), x_0, steps, corrections=corrections, callback=callback)


def _tokens(model: Decoder, texts: Sequence[str]) -> tuple[Tensor, Tensor] | None:
    """Tokens and mask (B, L) for the network's own text path, if it has one with a tokeniser."""
    text = model.config.ports.text
    if text is None or text.tokenizer is None:
        return None
    tokens, mask = tokenize(text.tokenizer.build(), texts)
    device = model.unet.conv_in.weight.device
    return tokens.to(device), mask.to(device)


def _states(model: Decoder, inputs: Inputs, *texts: Sequence[str]) -> Sequence[dict[str, Any]]:
    """What the chain's frozen encoder says of lists of sentences, for `Given`, all of one length, if the network reads
    that; for ports.states, empty sentences count as not said."""
    port = next((name for name in ("clip_text", "states") if getattr(model.config.ports, name) is not None), None)
    if port is None:
        return [{} for _ in texts]
    assert inputs.encode is not None
    read = inputs.encode(*texts)
    found: list[dict[str, Any]] = []
    for features, sentences in zip(read, texts, strict=True):
        found.append({port: features.padded(max(f.mask.shape[1] for f in read))})
        if port == "states":
            found[-1]["dropped"] = {port: unsaid(sentences, features.mask.device)}
    return found


def rows(config: DecoderConfig, max_batch: int, max_tile: int | None) -> int:
    """`max_batch`, or fewer where the U-Net works on more than 64 × 64 places."""
    places = config.image_size // config.unet.patch_size
    return max_batch * 64**2 // places**2


def clip_facts(config: DecoderConfig) -> ClipFacts:
    """See `ClipFacts`."""
    image, text = config.ports.clip_image, config.ports.clip_text
    return ClipFacts(
        dim=image.dim if image is not None else None,
        text_width=text.width if text is not None else None,
        fingerprint=image.fingerprint if image is not None else (),
    )


def readers(model: Decoder) -> list[Tokenizer]:
    """That of its text path."""
    text = model.config.ports.text
    return [text.tokenizer.build()] if text is not None and text.tokenizer is not None else []


def example(model: Decoder) -> Example:
    """All ports are given as much as they take."""
    c, device = model.config, "cpu"
    ports = c.ports

    def once() -> Any:
        if not ports.names or ports.names == ("masked",):
            return model.null_condition(1)
        text = classes = z_i = states = t5 = None
        if ports.text is not None:
            text = torch.zeros(1, ports.text.context, dtype=torch.long), None
        if ports.classes is not None:
            classes = torch.zeros(1, dtype=torch.long)
        if ports.clip_image is not None:
            z_i = torch.zeros(1, ports.clip_image.dim or 1)
        if ports.clip_text is not None:
            mask = torch.ones(1, _CLIP_CONTEXT, dtype=torch.bool, device=device)
            width, dim = ports.clip_text.width or 1, ports.clip_text.dim or 1
            states = TextFeatures(torch.zeros(1, dim), torch.zeros(1, _CLIP_CONTEXT, width), mask)
        if ports.states is not None:
            width, dim = ports.states.width or 1, ports.states.dim or 1
            length = ports.states.positions or _T5_CONTEXT
            mask = torch.ones(1, length, dtype=torch.bool, device=device)
            t5 = TextFeatures(torch.zeros(1, dim), torch.zeros(1, length, width), mask)
        given = Given(1, text=text, clip_image=z_i, clip_text=states, states=t5, classes=classes)
        return model.project(model.condition(given))

    def step(condition: Any) -> None:
        x_t = torch.zeros(1, c.unet.in_channels, c.image_size, c.image_size)
        model(x_t, torch.zeros(1, dtype=torch.long), condition)

    return Example(once, step)


def complete(config: DecoderConfig, neighbours: Neighbours, data: DataConfig) -> DecoderConfig:
    """The config with what follows from its CLIP, its text encoder, its autoencoder or what they left in `data`, its
    tokeniser and the classes of the data.

    A decoder that is given a CLIP and says nothing of ports reads its image embeddings. Raises UsageError for a
    neighbour that is missing, or of no use, and for values that are not those of the neighbour.
    """
    clip: Any = neighbours.get("clip")
    ports = config.ports
    if clip is not None and "ports" not in config.model_fields_set:
        ports = PortsConfig(clip_image=ClipImageConfig())
    reads = [name for name in ("clip_image", "clip_text") if name in ports.names]
    if reads and clip is None:
        raise UsageError(
            f"a decoder with model.ports.{reads[0]} learns from a trained CLIP: name its folder, clip=FOLDER, or leave "
            "that port out"
        )
    if clip is not None and not reads and ports.text is None:
        raise UsageError("clip=…: this decoder has no port for anything of a CLIP; leave it out")
    found: dict[str, Any] = {}
    if ports.clip_image is not None:
        facts = {"dim": clip.dim, "fingerprint": clip.fingerprint()}
        found["clip_image"] = follow(ports.clip_image, "model.ports.clip_image.", "the CLIP", **facts)
    if ports.clip_text is not None:
        sizes = {"width": clip.text_width, "dim": clip.dim}
        found["clip_text"] = follow(ports.clip_text, "model.ports.clip_text.", "the CLIP", **sizes)
    if ports.text is not None:
        found["text"] = text_port(ports.text, clip)
    if ports.classes is not None:
        found["classes"] = class_port(ports.classes, data)
    found |= states_port(config, neighbours.get("text"), data)
    return config.model_copy(
        update={
            "ports": ports.model_copy(update=found),
            "latents": latents_of(config, neighbours.get("autoencoder"), data),
        }
    )


def older(model: dict[str, Any], needs: Collection[str]) -> dict[str, Any]:
    """Before 0.2 a decoder that was given a CLIP read its embeddings unless `clip_dim` was null by name."""
    flat = model.keys() & {*FLAT, "text", "tokenizer", "inpaint"}
    if "clip" in needs and "ports" not in model and "clip_dim" not in model and flat:
        return {"clip_scale": 1.0, **model}
    return model


def fits(model: Decoder, data: DataConfig, options: Any, neighbours: Neighbours) -> None:
    """UsageError for pictures of another side; in latent space, see `check_data`."""
    if model.config.diffusion.space == "latents":
        return check_data(model.config, data, options, neighbours)
    check_side(data, model.config.image_size)


def start(state: dict[str, Tensor], model: Decoder) -> dict[str, Tensor]:
    """Weights to start from, and what `model` has beyond them and that starts as nothing: channels of a masked picture
    after those of x_t (GLIDE, section 3.2), and `Fine` blocks, anew where those of `state` are others; without the port
    for CLIP if `model` has none, but with what the null embedding adds to the vector. A transformer over frozen states
    starts from one over words, if that is all there was."""
    wanted, unet = model.state_dict(), model.config.unet
    fine, before = ({key: w[key] for key in w if key.startswith("unet.fine.")} for w in (wanted, state))
    anew = fine and {key: len(fine[key]) for key in fine} != {key: len(before[key]) for key in before}
    out = {key: state[key] for key in state if key not in before} | fine if anew else dict(state)
    nothing, bias = "ports.clip_image.nothing", "ports.text.vector.bias"
    if nothing in out and nothing not in wanted and bias in out:
        weight, shift = (out[f"ports.clip_image.vector.{name}"].float() for name in ("weight", "bias"))
        out[bias] = out[bias] + weight @ out[nothing].float() + shift
    out = {key: value for key, value in out.items() if key in wanted or not key.startswith("ports.clip_")}
    if "ports.states.norm.weight" in wanted and "ports.states.null_state" not in out:
        for key in [key for key in out if key.startswith(_OVER_WORDS)]:
            out[key.replace("ports.text.", "ports.states.").replace(".encoder.", ".")] = out.pop(key)
        rows, own = out.get("ports.text.encoder.positions"), wanted.get("ports.states.positions")
        if rows is not None and own is not None and rows.shape[1] == own.shape[1]:
            num = min(len(rows), len(own))
            out["ports.states.positions"] = torch.cat([rows[:num].to(own.dtype), own[num:]])
            del out["ports.text.encoder.positions"]
    for key, pixels in (("unet.conv_in.weight", unet.patch_size), ("unet.fine.conv_in.weight", unet.fine_patch)):
        missing = wanted[key].shape[1] - out[key].shape[1] if key in wanted and key in out else 0
        seen = unet.in_channels * pixels**2  # channels of x_t
        if missing > 0 and out[key].shape[1] >= seen:
            zeros = out[key].new_zeros(out[key].shape[0], missing, *out[key].shape[2:])
            out[key] = torch.cat([out[key][:, :seen], zeros, out[key][:, seen:]], dim=1)
    return out
