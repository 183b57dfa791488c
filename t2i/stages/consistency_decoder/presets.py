"""The published consistency decoder, with the facts that no weight file shows."""

from t2i.nn.unet import UNetConfig
from t2i.stages.consistency_decoder.model import ConsistencyDecoderConfig, LatentsConfig

KL_F8 = LatentsConfig(  # of Stable Diffusion's autoencoder
    channels=4,
    factor=8,
    mean=(0.38862467, 0.02253063, 0.07381133, -0.0171294),
    std=(0.9654121, 1.0440036, 0.76147926, 0.77022034),
    scaling=0.18215,
)

PRESETS: dict[str, ConsistencyDecoderConfig] = {
    "consistency-decoder": ConsistencyDecoderConfig(  # OpenAI, for Stable Diffusion's latents: 621 M parameters
        unet=UNetConfig(
            out_channels=6,
            image_channels=4,
            channels=320,
            multipliers=(1, 2, 3.2, 3.2),
            num_blocks=3,
            attention=(),
            mid_attention=False,
            time_table=1024,
        ),
        latents=KL_F8,
    ),
}
