"""The decoder in latent space (DALL-E 3, appendix A): what follows from its text encoder and its autoencoder, or from
what these left in the data.

B batch · S side of the picture · L tokens · W width of states · C channels, h w places of latents
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from t2i.core.errors import DataError, UsageError
from t2i.core.types import Batch, LatentCodec, TextEncoder, TextFeatures
from t2i.data.config import DataConfig
from t2i.data.encoded import encoded_with
from t2i.nn.ports.base import mean_of
from t2i.stages.decoder.model import DecoderConfig, LatentsConfig
from t2i.stages.follow import check_same, check_side, follow


def unsaid(captions: Sequence[str], device: torch.device) -> Tensor:
    """Which captions are empty, (B,) bool."""
    return torch.tensor([not caption.strip() for caption in captions], device=device)


def states_port(config: DecoderConfig, text: Any, data: DataConfig) -> dict[str, Any]:
    """`ports.states` with what follows from the text encoder, or from the one that `data` were encoded with; nothing if
    there is no such port.

    Raises UsageError where there is neither, for an encoder that nothing reads, and where they are two.
    """
    port = config.ports.states
    if port is None:
        if text is not None:
            raise UsageError("needs.text=…: this decoder has no ports.states that would read it; leave it out")
        return {}
    encoded, facts, context = encoded_with(data), dict[str, Any](), None
    if encoded is not None and encoded.states is not None:
        facts = {"width": encoded.states.width, "fingerprint": encoded.states.fingerprint}
        context = encoded.states.context
    if text is not None:
        mark = tuple(text.fingerprint())
        check_same(facts.get("fingerprint", ()), mark, f"needs.text=… for {data.source}")
        facts, context = {"width": text.width, "fingerprint": mark}, text.tokenizer.context
    if 0 < port.positions < (context or 0):
        raise UsageError(f"model.ports.states.positions={port.positions}: the text encoder reads {context} tokens")
    if not facts:
        raise UsageError(
            "a decoder with model.ports.states learns from a text encoder: name its folder, needs.text=FOLDER, or "
            "train on what t2i data encode --text FOLDER wrote"
        )
    where = "the text encoder" if text is not None else f"{data.source}"
    return {"states": follow(port, "model.ports.states.", where, dim=facts["width"], **facts)}


def latents_of(config: DecoderConfig, autoencoder: Any, data: DataConfig) -> LatentsConfig | None:
    """`latents` with what follows from the autoencoder, or from the one that `data` were encoded with; None in pixels.

    Raises UsageError where there is neither, for an autoencoder of a decoder in pixels, and where they are two.
    """
    if config.diffusion.space != "latents":
        if autoencoder is not None:
            raise UsageError("needs.autoencoder=…: this decoder draws pixels (model.diffusion.space); leave it out")
        return config.latents
    encoded = encoded_with(data)
    if autoencoder is None and encoded is None:
        raise UsageError(
            "a decoder over latents learns from an autoencoder: name its folder, needs.autoencoder=FOLDER, or train on "
            "what t2i data encode wrote"
        )
    ours, facts = config.latents or LatentsConfig(), dict[str, Any]()
    if encoded is not None:
        facts = encoded.latents.model_dump(include={"channels", "factor", "fingerprint"})
    if autoencoder is not None:
        mark = tuple(autoencoder.fingerprint())
        check_same(facts.get("fingerprint", ()), mark, f"needs.autoencoder=… for {data.source}")
        facts = {"channels": autoencoder.channels, "factor": autoencoder.factor, "fingerprint": mark}
    return follow(ours, "model.latents.", "the autoencoder" if autoencoder is not None else f"{data.source}", **facts)


def check_data(config: DecoderConfig, data: DataConfig, options: Any, neighbours: Mapping[str, Any]) -> None:
    """UsageError for pictures, or latents in their place, of another size than the network's, or that are the other."""
    encoded, side = encoded_with(data), config.image_size
    if options.cached or "autoencoder" not in neighbours:
        if encoded is None:
            raise UsageError(f"task.cached=true: {data.source} holds no latents that t2i data encode wrote")
        if encoded.latents.side != side:
            raise UsageError(f"latents of {data.source} have sides of {encoded.latents.side}, model.image_size={side}")
        return
    if encoded is not None:
        raise UsageError(f"{data.source} holds latents and no pictures any more: say task.cached=true")
    factor = neighbours["autoencoder"].factor
    check_side(data, side * factor, f"model.image_size={side} times the autoencoder's factor {factor},")


def keys_of(config: DecoderConfig, text: TextEncoder | None, autoencoder: LatentCodec | None) -> tuple[str, ...]:
    """What a batch must hold: pictures or, where nobody encodes them, their latents; captions, and where nobody reads
    them, their states; labels."""
    ports, over_latents = config.ports, config.diffusion.space == "latents"
    wanted = {
        "latents" if over_latents and autoencoder is None else "image": True,
        "caption": bool({"text", "clip_text", "states"} & {*ports.names}),
        "label": ports.classes is not None,
        "states": ports.states is not None and text is None,
    }
    return tuple(key for key, there in wanted.items() if there)


def data_of(batch: Batch, config: DecoderConfig, autoencoder: LatentCodec | None) -> Tensor:
    """What is diffused: pictures (B, 3, S, S), or latents (B, C, h, w); DataError for latents of another size."""
    if config.diffusion.space != "latents":
        return torch.as_tensor(batch["image"])
    if "latents" in batch:
        latents = batch["latents"].float()
    else:
        assert autoencoder is not None
        with torch.no_grad():
            latents = autoencoder.encode_latents(batch["image"]).float()
    wanted = (config.unet.in_channels, config.image_size, config.image_size)
    if tuple(latents.shape[1:]) != wanted:
        given, ours = (" × ".join(map(str, shape)) for shape in (latents.shape[1:], wanted))
        raise DataError(f"latents are {given}, this decoder is over {ours}")
    return latents


def states_of(batch: Batch, text: TextEncoder | None) -> TextFeatures:
    """What a text encoder says of captions, or has said."""
    if "states" in batch:
        mask, sequence = batch["states_mask"], batch["states"].float()  # (B, L) (B, L, W)
        return TextFeatures(mean_of(sequence, mask), sequence, mask)
    assert text is not None
    with torch.no_grad():
        return text.encode_text(batch["caption"])


def pictures_of(latents: Tensor, autoencoder: LatentCodec | None) -> Tensor:
    """(B, C, h, w) → (B, 3, S, S) in [-1, 1]."""
    assert autoencoder is not None
    return autoencoder.decode_latents(latents).clamp(-1, 1)
