"""Small untrained stages and pipelines of classes and of GLIDE, 16 and 32 pixels, and an autoregressive prior."""

from typing import Any

import torch
import torch.nn.functional as F
from conftest import CONTEXT, WORDS, shaken

from t2i.nn.encoder import EncoderConfig
from t2i.nn.ports import ClassesConfig, MaskedConfig, PortsConfig, TextPortConfig
from t2i.nn.unet import UNetConfig
from t2i.pipelines.adm import ADM
from t2i.pipelines.dalle3 import DALLE3
from t2i.pipelines.ddpm import DDPM
from t2i.pipelines.glide import GLIDE
from t2i.stages.ar_prior.model import ArPrior, ArPriorConfig
from t2i.stages.autoencoder.model import Autoencoder, AutoencoderConfig
from t2i.stages.captioner.model import Captioner, CaptionerConfig
from t2i.stages.classifier.model import Classifier, ClassifierConfig
from t2i.stages.consistency_decoder.model import ConsistencyDecoder, ConsistencyDecoderConfig, LatentsConfig
from t2i.stages.dalle2_pytorch.decoder.model import LaionDecoder, LaionDecoderConfig
from t2i.stages.decoder.model import Decoder, DecoderConfig
from t2i.stages.noised_clip.model import NoisedClip, NoisedClipConfig, TowerConfig
from t2i.stages.rewriter.model import Rewriter, RewriterConfig
from t2i.stages.t5.model import T5, T5Config
from t2i.stages.upsampler.model import Upsampler, UpsamplerConfig
from t2i.text.tokenizers import TokenizerConfig

UNET = UNetConfig(channels=32, multipliers=(1, 2), num_blocks=1, attention=(2,), head_channels=32)
TOKENIZER = TokenizerConfig(words=WORDS, context=CONTEXT)
TEXT = TextPortConfig(
    width=32, layers=1, heads=2, vocab_size=TOKENIZER.vocab_size, context=CONTEXT, tokenizer=TOKENIZER
)
MASKED = PortsConfig(masked=MaskedConfig())
STEPS = {"steps": {"decoder": 4, "upsampler": 3, "inpaint": 4, "inpaint_upsampler": 3}}


def of(unet: UNetConfig = UNET, **changes: Any) -> UNetConfig:
    return unet.model_copy(update=changes)


def classes(num: int = 3, names: tuple[str, ...] = (), *, null_class: bool = False) -> PortsConfig:
    return PortsConfig(classes=ClassesConfig(num=num, names=names, null_class=null_class))


def decoder(seed: int = 0, **changes: Any) -> Decoder:
    torch.manual_seed(seed)
    return shaken(Decoder(DecoderConfig(**({"unet": UNET, "image_size": 16} | changes)))).eval()


def upsampler(seed: int = 1, **changes: Any) -> Upsampler:
    torch.manual_seed(seed)
    given = {"unet": of(image_channels=3), "low_size": 16, "image_size": 32} | changes
    return shaken(Upsampler(UpsamplerConfig(**given))).eval()


def classifier(num_classes: int = 3, **changes: Any) -> Classifier:
    torch.manual_seed(2)
    encoder = EncoderConfig(channels=32, multipliers=(1, 2), num_blocks=1, attention=(2,), head_channels=32)
    config = ClassifierConfig(encoder=encoder, num_classes=num_classes, **({"image_size": 16} | changes))
    return shaken(Classifier(config)).eval()


def noised_clip(**changes: Any) -> NoisedClip:
    torch.manual_seed(3)
    tower = TowerConfig(width=32, layers=1, heads=2)
    config = NoisedClipConfig(embed_dim=16, image_size=16, vision=tower, text=tower, tokenizer=TOKENIZER, **changes)
    return NoisedClip(config).eval()


def laion_decoder() -> LaionDecoder:
    """Of `conftest.small_clip` with embeddings of 32."""
    config = LaionDecoderConfig(
        era="C", channels=16, multipliers=(1, 2), num_blocks=1, attention=(1,), heads=2, head_width=8,
        context_dim=16, clip_dim=32, clip_text_width=32, context=12, image_size=32,
    )  # fmt: skip
    return shaken(LaionDecoder(config)).eval()


def ar_prior(**changes: Any) -> ArPrior:
    """Of `conftest.small_clip`, calibrated on embeddings drawn at random: 9 codes of 16 buckets."""
    torch.manual_seed(6)
    sizes = {"num_components": 8, "num_buckets": 16, "width": 32, "layers": 2, "heads": 2}
    text = {"text_width": 32, "context": CONTEXT, "encoder_width": 16, "encoder_layers": 1, "encoder_heads": 2}
    model = ArPrior(ArPriorConfig(clip_dim=16, **(sizes | text | changes))).eval()
    model.calibrate(*torch.nn.functional.normalize(torch.randn(2, 64, 16), dim=-1))
    return shaken(model)


def t5(**changes: Any) -> T5:
    """States of width 16."""
    torch.manual_seed(7)
    sizes = {"width": 16, "layers": 1, "heads": 2, "head_width": 8, "hidden": 32, "sentinels": 4}
    return T5(T5Config(**({"tokenizer": TOKENIZER} | sizes | changes))).eval()


class Codec(torch.nn.Module):
    """A `LatentCodec` of 4 channels and factor 4: the mean colour of every 4 × 4 pixels, and how bright they are."""

    channels, factor = 4, 4

    def __init__(self, scale: float = 2.0, mark: float = 0.0) -> None:
        super().__init__()
        self.scale, self.mark = scale, mark

    def encode_latents(self, image: torch.Tensor) -> torch.Tensor:
        colour = F.avg_pool2d(image.float(), self.factor)
        return torch.cat([colour, colour.mean(dim=1, keepdim=True)], dim=1) * self.scale

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        return F.interpolate(latents[:, :3] / self.scale, scale_factor=float(self.factor))

    def fingerprint(self) -> tuple[float, ...]:
        return (1.0, self.mark, 0.5)


def latent_decoder(seed: int = 8, layers: int = 1, positions: int = 0, **changes: Any) -> Decoder:
    """Latents 4 × 8 × 8 of `Codec`, from states of `t5`."""
    encoder, codec = t5(), Codec()
    states = {"width": 16, "dim": 16, "fingerprint": encoder.fingerprint()}
    states |= {"layers": layers, "heads": 2, "positions": positions}
    given = {
        "unet": of(in_channels=4, out_channels=8, context_dim=32),
        "diffusion": {"space": "latents", "target": "v"},
        "ports": {"states": states},
        "image_size": 8,
        "latents": {"channels": 4, "factor": 4, "fingerprint": codec.fingerprint()},
    }
    torch.manual_seed(seed)
    return shaken(Decoder(DecoderConfig.model_validate(given | changes))).eval()


def autoencoder(**changes: Any) -> Autoencoder:
    """Eight pixels of a side to a place, four channels, for pictures of 32 pixels."""
    torch.manual_seed(7)
    sizes = {"channels": 16, "multipliers": (1, 2, 2), "num_blocks": 1, "norm_groups": 8, "patch_size": 2}
    return shaken(Autoencoder(AutoencoderConfig(**(sizes | {"image_size": 32} | changes)))).eval()


def consistency_decoder(seed: int = 7, **changes: Any) -> ConsistencyDecoder:
    """Of `codec.SmallCodec`."""
    torch.manual_seed(seed)
    unet = UNetConfig(
        channels=32, multipliers=(1, 1), num_blocks=1, attention=(), mid_attention=False,
        image_channels=4, out_channels=3, patch_size=4,
    )  # fmt: skip
    given = {"unet": unet, "image_size": 32, "latents": LatentsConfig(fingerprint=(0.5, 1.0))} | changes
    return shaken(ConsistencyDecoder(ConsistencyDecoderConfig(**given))).eval()


def captioner(**changes: Any) -> Captioner:
    torch.manual_seed(7)
    tower = {"width": 32, "layers": 2, "heads": 2}
    sizes = {"image_size": 32, "patch_size": 8, "vision": tower, "text": tower, "num_queries": 8, "embed_dim": 16}
    return Captioner(CaptionerConfig.model_validate(sizes | {"tokenizer": TOKENIZER} | changes)).eval()


def rewriter(**changes: Any) -> Rewriter:
    torch.manual_seed(8)
    return Rewriter(RewriterConfig(**({"width": 32, "layers": 2, "heads": 2, "tokenizer": TOKENIZER} | changes))).eval()


def with_ports(config: Any, **ports: Any) -> Any:
    """A config with other ports, unchecked; None takes one away."""
    return config.model_copy(update={"ports": config.ports.model_copy(update=ports)})


def settings(pipe: type, parts: dict) -> dict:
    return {"steps": {name: value for name, value in STEPS["steps"].items() if name in parts}}


def ddpm(**parts: Any) -> DDPM:
    parts = {"decoder": decoder()} | parts
    return DDPM(parts, settings(DDPM, parts), "small").to("cpu", "float32")


def adm(**parts: Any) -> ADM:
    parts = {"decoder": decoder(ports=classes(3, ("cube", "sphere", "red cube")))} | parts
    return ADM(parts, settings(ADM, parts), "small").to("cpu", "float32")


def glide(*without: str) -> GLIDE:
    """All five parts, but those named."""
    reads, sees = PortsConfig(text=TEXT), PortsConfig(text=TEXT, masked=MaskedConfig())
    parts = {
        "decoder": decoder(0, unet=of(context_dim=32), ports=reads),
        "upsampler": upsampler(1, unet=of(context_dim=32, image_channels=3), ports=reads),
        "inpaint": decoder(4, unet=of(context_dim=32, image_channels=4), ports=sees),
        "inpaint_upsampler": upsampler(5, unet=of(context_dim=32, image_channels=7), ports=sees),
        "clip": noised_clip(),
    }
    parts = {name: part for name, part in parts.items() if name not in without}
    return GLIDE(parts, settings(GLIDE, parts), "small").to("cpu", "float32")


def dalle3_parts(**changes: Any) -> dict[str, Any]:
    """For pictures of 64 px from latents 4 × 8 × 8."""
    codec = autoencoder()
    latents = {"channels": codec.channels, "factor": codec.factor, "fingerprint": codec.fingerprint()}
    return {
        "text": t5(),
        "decoder": latent_decoder(latents=latents),
        "autoencoder": codec,
        "rewriter": rewriter(),
        "consistency": consistency_decoder(latents=latents, image_size=64),
    } | changes


def dalle3(*without: str, **changes: Any) -> DALLE3:
    """All five parts, but those named."""
    given = {name: part for name, part in dalle3_parts(**changes).items() if name not in without}
    return DALLE3(given, {"steps": {"decoder": 2}})
