"""Published sizes of upsamplers, by name, with the facts that no weight file shows."""

from t2i.diffusion.config import Diffusion
from t2i.nn.ports import ClassesConfig, MaskedConfig, PortsConfig, TextPortConfig
from t2i.nn.unet import UNetConfig
from t2i.stages.upsampler.model import UpsamplerConfig
from t2i.text.tokenizers import TokenizerConfig

_SIX_LEVELS = UNetConfig(image_channels=3, channels=192, multipliers=(1, 1, 2, 2, 4, 4), num_blocks=2, num_heads=4)


def _of(**changes: object) -> UNetConfig:
    """The six levels that every published upsampler has but unCLIP's first, otherwise changed."""
    return UNetConfig.model_validate({**_SIX_LEVELS.model_dump(), **changes})


_GLIDE_UNET = {"attention": (8, 16, 32), "num_heads": None, "head_channels": 64, "context_dim": 512, "dropout": 0.1}
_GLIDE_TEXT = TextPortConfig(
    width=512, layers=16, heads=8, vocab_size=50257, context=128, tokenizer=TokenizerConfig(kind="gpt2", context=128)
)
_IMAGENET = PortsConfig(classes=ClassesConfig(num=1000))

PRESETS: dict[str, UpsamplerConfig] = {
    "iddpm-256": UpsamplerConfig(  # ImageNet, 64 to 256: 280 M parameters
        unet=_of(attention=(16, 32), resample="conv"),
        ports=_IMAGENET,
        diffusion=Diffusion(schedule="linear", num_steps=4000),
        levels="truncated",
    ),
    "adm-64-256": UpsamplerConfig(  # ImageNet: 312 M
        unet=_of(attention=(8, 16, 32)), ports=_IMAGENET, levels="truncated"
    ),
    "adm-128-512": UpsamplerConfig(  # 309 M
        unet=_of(attention=(16, 32), num_heads=None, head_channels=64),
        low_size=128,
        image_size=512,
        ports=_IMAGENET,
        levels="truncated",
    ),
    "glide-256": UpsamplerConfig(unet=_of(**_GLIDE_UNET), ports=PortsConfig(text=_GLIDE_TEXT)),  # filtered: 398 M
    "glide-256-inpaint": UpsamplerConfig(
        unet=_of(**_GLIDE_UNET, image_channels=7), ports=PortsConfig(text=_GLIDE_TEXT, masked=MaskedConfig())
    ),
    "dalle2-256": UpsamplerConfig(  # unCLIP, Table 3, 64 to 256: 700 M
        unet=UNetConfig(
            image_channels=3,
            channels=320,
            multipliers=(1, 2, 3, 4),
            num_blocks=3,
            attention=(),
            mid_attention=False,
            dropout=0.1,
        ),
        diffusion=Diffusion(schedule="cosine"),
    ),
    "dalle2-1024": UpsamplerConfig(  # 256 to 1024: 300 M
        unet=_of(attention=(), mid_attention=False, num_heads=None), low_size=256, image_size=1024
    ),
    "karlo-256": UpsamplerConfig(  # Karlo's two networks, 64 to 256: 692 M each
        unet=UNetConfig(
            out_channels=3,
            image_channels=3,
            channels=320,
            multipliers=(1, 2, 3, 4),
            num_blocks=3,
            attention=(),
            mid_attention=False,
            scale_shift=False,
        ),
        levels="exact",
        interpolation="bicubic",
        antialias=True,
        diffusion=Diffusion(variance="fixed_small", schedule="cosine"),
        last_step=True,
    ),
}
