"""A stage of your own in one file: a prior of one evaluation, a GAN that learns from vectors.

    python examples/13_add_a_stage.py --steps 200 --out one-step

In a package it is a folder of six such files (CONTRIBUTING.md). Two frozen neighbours: `clip` reads the captions, and
`teacher` says which embedding to expect. Two optimisers: a discriminator learns beside it. Its data are shards without
pictures: `000.z.npy`, a CLIP embedding, and `000.txt`, a caption.

B batch · D width of CLIP embeddings
"""

import argparse
import io
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.seed import Streams, upload
from t2i.core.types import Batch, Encoder, Phase, Task
from t2i.data import shapes
from t2i.diffusion.sampling import Sampling
from t2i.io.images import save_png, sheet, to_pil
from t2i.run import train
from t2i.stages.registry import STAGES, load_stage, stage
from t2i.stages.stage import How, Inputs, Stage


def mlp(inside: int, width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inside, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, out))


class OneStepConfig(Config):
    dim: int = 128
    width: int = 256


class OneStep(nn.Module):
    """`one_step(z_t, noise) → z_i`, (B, D) each."""

    def __init__(self, config: OneStepConfig) -> None:
        super().__init__()
        self.config = config
        self.net = mlp(2 * config.dim, config.width, config.dim)

    def forward(self, z_t: Tensor, noise: Tensor) -> Tensor:
        return F.normalize(z_t + self.net(torch.cat([z_t, noise], dim=1)), dim=1)


class OneStepOptions(Config):
    adversarial: float = 0.05  # weight of what the judge says


class OneStepTask(Task):
    """Near what the teacher expects of a sentence, and to a discriminator as real as the data."""

    needs: ClassVar = {"clip": Encoder, "teacher": nn.Module}
    keys = ("caption", "z")

    def __init__(self, model: OneStep, options: OneStepOptions = OneStepOptions(), **neighbours: Any) -> None:
        super().__init__(model)
        self.clip, self.teacher, self.options = neighbours["clip"], neighbours["teacher"], options
        self.judge = mlp(2 * model.config.dim, model.config.width, 1)

    def phases(self) -> list[Phase]:
        return [Phase("main", self.model, self.loss), Phase("judge", self.judge, self.judge_loss, lr=2.0)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        text, noise = self.read(batch)
        z = self.model(text.pooled, noise)
        with torch.no_grad():  # from noise alone, x_0 is the mean of all embeddings that fit the sentence
            last = torch.full((len(z),), self.teacher.config.diffusion.num_steps - 1, device=z.device)
            expected = self.teacher.restore(self.teacher(noise, last, self.teacher.condition(text)))
        near, fooled = 1 - F.cosine_similarity(z, expected), F.softplus(-self.real(text.pooled, z))
        return {"loss": near + self.options.adversarial * fooled, "cosine": F.cosine_similarity(z, batch["z"])}

    def judge_loss(self, batch: Batch) -> dict[str, Tensor]:
        text, noise = self.read(batch)
        z = self.model(text.pooled, noise).detach()
        return {"loss": F.softplus(-self.real(text.pooled, batch["z"])) + F.softplus(self.real(text.pooled, z))}

    def real(self, z_t: Tensor, z_i: Tensor) -> Tensor:
        return self.judge(torch.cat([z_t, z_i], dim=1))[:, 0]  # (B,)

    def read(self, batch: Batch) -> tuple[Any, Tensor]:
        noise = Streams(batch["seed"], "one-step").normal(self.model.config.dim)  # of each sample, whatever the batch
        return self.clip.encode_text(batch["caption"]), upload(noise, batch["z"].device)


def draw(model: OneStep, inputs: Inputs, how: How) -> Tensor:
    """Embeddings (B, D) of sentences."""
    (text,) = inputs.encode(inputs.prompts)
    z_t = text.pooled
    return model(z_t, upload(how.streams.normal(model.config.dim), z_t.device))


STAGE = Stage(
    name="one_step", config=OneStepConfig, model=OneStep, options=OneStepOptions, task=OneStepTask,
    makes="embeddings", draw=draw, stepped=False, num_evaluations=lambda config, sampling: 1,
)  # fmt: skip


def write_vectors(path: Path, clip: Any, num: int) -> None:
    """A shard of CLIP embeddings and captions, without pictures."""
    with torch.no_grad(), tarfile.open(path, "w") as tar:
        for start in range(0, num, 64):
            batch = shapes.batch(range(start, min(start + 64, num)), clip.image_size)
            for i, z in enumerate(clip.encode_image(batch["image"])):
                np.save(array := io.BytesIO(), z.numpy())
                for kind, data in (("z.npy", array.getvalue()), ("txt", batch["caption"][i].encode())):
                    member = tarfile.TarInfo(f"{start + i:06}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def main(steps: int, num: int, out: Path, clip: str, teacher: str, decoder: str) -> None:
    STAGES["one_step"] = __name__  # in the library: the line in registry.py
    out.mkdir(parents=True, exist_ok=True)
    encoder, network = load_stage(clip), load_stage(decoder)
    write_vectors(out / "vectors.tar", encoder, num)
    (config := out / "one_step.yaml").write_text(
        f"stage: one_step\nneeds: {{clip: {clip}, teacher: {teacher}}}\nmodel: {{dim: {encoder.dim}}}\n"
        f"data: {{source: {out / 'vectors.tar'}}}\noptim: {{lr: 1e-3}}\n"
        f"train: {{steps: {steps}, batch_size: 64, out: {out / 'run'}, save_every: 100, val_every: 100}}\n"
    )
    train(config, [])
    prompts = ["a red cube", "a blue sphere", "a green cone", "a yellow torus"]
    model, streams = load_stage(out / "run", expect="one_step"), Streams(range(4), "prior")
    inputs = Inputs(4, prompts, encode=lambda *texts: [encoder.encode_text(captions) for captions in texts])
    z_i = STAGE.draw(model, inputs, How(Sampling(), streams))
    seen, how = Inputs(4, prompts, [""] * 4, z_i=z_i), How(Sampling(25, guidance=3.0), Streams(range(4), "decoder"))
    x = stage("decoder").draw(network, seen, how)  # what the library's decoder makes of it
    save_png(sheet(to_pil(x), columns=4), out / "one-step.png")
    print(out / "one-step.png", ", ".join(prompts))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--num", type=int, default=2048, help="embeddings to learn from")
    parser.add_argument("--out", type=Path, default=Path("one-step"))
    for name, stands_for in (("clip", "clip"), ("teacher", "prior"), ("decoder", "decoder")):
        parser.add_argument(f"--{name}", default=f"weights/shapes/{stands_for}")
    main(**vars(parser.parse_args()))
