"""Train all five stages, one after the other, on the shapes world or on your own folder, and chain them.

    python examples/02_train_each_stage.py --out runs/mine --minutes 5
    python examples/02_train_each_stage.py --out runs/mine --data photos/      (pictures with .txt captions beside them)
    python examples/02_train_each_stage.py --stages clip,prior train.batch_size=32

Every stage is `t2i train configs/shapes/<stage>.yaml` with overrides. The prior and the decoder learn from the CLIP
model that was trained first; the upsamplers depend on nothing. Running the script again continues where it stopped.
"""

import argparse
import sys
from pathlib import Path

from t2i.core.errors import T2IError
from t2i.pipelines.dalle2 import DALLE2
from t2i.run import train

STAGES = ("clip", "prior", "decoder", "up256", "up1024")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/mine"))
    parser.add_argument("--data", default="shapes", help="shapes, a folder of captioned pictures, or tar shards")
    parser.add_argument("--minutes", type=float, default=5.0, help="per stage")
    parser.add_argument("--stages", default=",".join(STAGES), help="which of them, in this order")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every stage, such as train.steps=20")
    args = parser.parse_args()

    for stage in args.stages.split(","):
        overrides = [
            f"train.out={args.out / stage}",
            f"train.max_minutes={args.minutes}",
            f"data.source={args.data}",
            *args.overrides,
        ]
        if stage == "clip" and args.data != "shapes":  # its words are not those of the shapes world
            overrides[:0] = ["model.tokenizer.kind=clip", "model.tokenizer.context=77"]
        if stage in ("prior", "decoder"):
            overrides.append(f"clip={args.out / 'clip'}")
        result = train(f"configs/shapes/{stage}.yaml", overrides)
        print(f"{stage}: {result.step} steps, {result.images} pictures, {result.reason}")

    # A pipeline is a folder of stages and an index; `t2i assemble` does the same from the command line.
    trained = {stage: args.out / stage for stage in STAGES if (args.out / stage / "config.json").is_file()}
    if {"clip", "prior", "decoder"} <= set(trained):
        pipe = DALLE2.assemble(trained)
        pipe.save_pretrained(args.out / "pipeline")
        pipe("a red cube", seed=0).save(args.out / "cube.png")
        print(args.out / "cube.png")


if __name__ == "__main__":
    try:
        main()
    except T2IError as error:
        sys.exit(f"error: {error}")
