"""Published sizes of decoders, by name, with the facts that no weight file shows."""

from t2i.diffusion.config import Diffusion
from t2i.nn.ports import ClassesConfig, ClipImageConfig, ClipTextConfig, MaskedConfig, PortsConfig, TextPortConfig
from t2i.nn.unet import UNetConfig
from t2i.stages.decoder.model import DecoderConfig
from t2i.text.tokenizers import TokenizerConfig


def _ddpm(size: int, multipliers: tuple[int, ...], attention: int, dropout: float) -> DecoderConfig:
    unet = UNetConfig(
        out_channels=3,
        channels=128,
        multipliers=multipliers,
        num_blocks=2,
        attention=(attention,),
        num_heads=1,
        scale_shift=False,
        resample="conv",
        down_padding="right_bottom",
        norm_eps=1e-6,
        time_order="sin_cos",
        time_denominator_shift=1,
        dropout=dropout,
    )
    variance = "fixed_large" if size == 32 else "fixed_small"
    return DecoderConfig(unet=unet, image_size=size, diffusion=Diffusion(variance=variance, schedule="linear"))


def _classes(num: int | None) -> PortsConfig:
    return PortsConfig(classes=ClassesConfig(num=num)) if num is not None else PortsConfig()


def _iddpm(unet: UNetConfig, size: int, num_classes: int | None = None) -> DecoderConfig:
    # float timesteps are for the unconditional networks alone
    diffusion = Diffusion(num_steps=4000, rescale_timesteps=num_classes is None)
    return DecoderConfig(unet=unet, image_size=size, ports=_classes(num_classes), diffusion=diffusion)


_IDDPM_64 = UNetConfig(
    channels=128, multipliers=(1, 2, 3, 4), num_blocks=3, attention=(4, 8), num_heads=4, resample="conv"
)
_ADM_64 = UNetConfig(
    channels=192, multipliers=(1, 2, 3, 4), num_blocks=3, attention=(2, 4, 8), head_channels=64, dropout=0.1
)
_ADM_128 = UNetConfig(channels=256, multipliers=(1, 1, 2, 3, 4), num_blocks=2, attention=(4, 8, 16), num_heads=4)
_ADM_256 = UNetConfig(
    channels=256, multipliers=(1, 1, 2, 2, 4, 4), num_blocks=2, attention=(8, 16, 32), head_channels=64
)
_ADM_512 = UNetConfig(
    channels=256, multipliers=(0.5, 1, 1, 2, 2, 4, 4), num_blocks=2, attention=(16, 32, 64), head_channels=64
)


def _adm(unet: UNetConfig, size: int, num_classes: int | None = 1000) -> DecoderConfig:
    diffusion = Diffusion(schedule="cosine" if size == 64 else "linear")
    return DecoderConfig(unet=unet, image_size=size, ports=_classes(num_classes), diffusion=diffusion)


_GLIDE_TEXT = TextPortConfig(
    width=512, layers=16, heads=8, vocab_size=50257, context=128, tokenizer=TokenizerConfig(kind="gpt2", context=128)
)
_GLIDE_UNET = _ADM_64.model_copy(update={"context_dim": 512})

PRESETS: dict[str, DecoderConfig] = {
    "ddpm-cifar10": _ddpm(32, (1, 2, 2, 2), attention=2, dropout=0.1),  # 35.7 M parameters
    "ddpm-256": _ddpm(256, (1, 1, 2, 2, 4, 4), attention=16, dropout=0.0),  # LSUN, CelebA-HQ: 113.7 M
    "iddpm-cifar10": _iddpm(  # 52.5 M
        UNetConfig(
            channels=128,
            multipliers=(1, 2, 2, 2),
            num_blocks=3,
            attention=(2, 4),
            num_heads=4,
            resample="conv",
            dropout=0.3,
        ),
        size=32,
    ),
    "iddpm-64": _iddpm(_IDDPM_64, size=64),  # ImageNet, unconditional: 121 M
    "iddpm-64-classes": _iddpm(_IDDPM_64.model_copy(update={"channels": 192}), size=64, num_classes=1000),  # 273 M
    "iddpm-lsun": DecoderConfig(  # bedrooms at 256 pixels: 113.7 M
        unet=UNetConfig(
            channels=128,
            multipliers=(1, 1, 2, 2, 4, 4),
            num_blocks=2,
            attention=(16,),
            num_heads=1,
            scale_shift=False,
            resample="conv",
        ),
        image_size=256,
        diffusion=Diffusion(schedule="linear"),
    ),
    "adm-64": _adm(_ADM_64, 64),  # ImageNet: 296 M
    "adm-128": _adm(_ADM_128, 128),  # 422 M
    "adm-256": _adm(_ADM_256, 256),  # 554 M
    "adm-256-uncond": _adm(_ADM_256, 256, num_classes=None),  # ImageNet, and LSUN horses without dropout: 553 M
    "adm-lsun": _adm(_ADM_256.model_copy(update={"dropout": 0.1}), 256, num_classes=None),
    "adm-512": _adm(_ADM_512, 512),  # 559 M
    "glide": DecoderConfig(unet=_GLIDE_UNET, ports=PortsConfig(text=_GLIDE_TEXT)),  # filtered: 385 M
    "glide-inpaint": DecoderConfig(
        unet=_GLIDE_UNET.model_copy(update={"image_channels": 4}),
        ports=PortsConfig(text=_GLIDE_TEXT, masked=MaskedConfig()),
    ),
    "karlo": DecoderConfig(  # 893 M, 885 M of them in the U-Net
        unet=UNetConfig(
            channels=320,
            multipliers=(1, 2, 3, 4),
            num_blocks=3,
            attention=(2, 4, 8),
            head_channels=64,
            context_dim=1536,
            dropout=0.1,
        ),
        ports=PortsConfig(clip_image=ClipImageConfig(dim=768), clip_text=ClipTextConfig(width=768, dim=768)),
    ),
    "dalle2": DecoderConfig(  # unCLIP, Table 3: 3.5 B
        unet=UNetConfig(
            channels=512,
            multipliers=(1, 2, 3, 4),
            num_blocks=3,
            attention=(2, 4, 8),
            head_channels=64,
            context_dim=2048,
            dropout=0.1,
        ),
        ports=PortsConfig(  # captions by the tokens of its CLIP
            text=TextPortConfig(width=2048, layers=24, heads=32, vocab_size=49408, context=256),
            clip_image=ClipImageConfig(dim=1024),
        ),
    ),
}
