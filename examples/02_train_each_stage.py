"""Train all five stages, one after the other, on the shapes world or on your own folder, and chain them.

    python examples/02_train_each_stage.py --out runs/mine --minutes 5
    python examples/02_train_each_stage.py --out runs/mine --data photos/        (pictures with .txt captions beside them)

Every stage is `t2i train configs/shapes/<stage>.yaml` with overrides. The prior and the decoder learn from the CLIP model
that was trained first; the upsamplers depend on nothing. Running the script again continues where it stopped.
"""

import argparse
import json
import shutil
from pathlib import Path

from t2i import Pipeline
from t2i.recipe import train

SIZES = {"clip": 64, "prior": 64, "decoder": 64, "up256": 256, "up1024": 1024}
SETTINGS = {
    "steps": {"prior": 25, "decoder": 30, "up256": 10, "up1024": 6},
    "guidance": {"prior": 2.0, "decoder": 3.0},
    "sampler": {"prior": "ddpm", "decoder": "ddim", "up256": "ddim", "up1024": "ddim"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/mine"))
    parser.add_argument("--data", default="shapes", help="shapes, a folder of captioned pictures, or tar shards")
    parser.add_argument("--minutes", type=float, default=5.0, help="per stage")
    parser.add_argument("--stages", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every stage, such as train.steps=20")
    args = parser.parse_args()

    for stage in args.stages:
        overrides = [
            f"train.out={args.out / stage}",
            f"train.max_minutes={args.minutes}",
            f"data.source={args.data}",
            *args.overrides,
        ]
        if stage in ("prior", "decoder"):
            overrides.append(f"clip={args.out / 'clip'}")
        result = train(f"configs/shapes/{stage}.yaml", overrides)
        print(f"{stage}: {result.step} steps, {result.images} pictures, {result.reason}")

    # A pipeline is a folder of stages and an index.
    model = args.out / "pipeline"
    index: dict = {"_class_name": "dalle2"}
    for stage in args.stages:
        shutil.copytree(args.out / stage, model / stage, ignore=shutil.ignore_patterns("checkpoints", "samples", "*.jsonl"),
                        dirs_exist_ok=True)  # fmt: skip
        index[stage] = ["t2i", "upsampler" if stage.startswith("up") else stage]
    settings = {what: {s: v for s, v in values.items() if s in args.stages} for what, values in SETTINGS.items()}
    (model / "model_index.json").write_text(json.dumps(index | {"settings": settings}, indent=2))
    if {"clip", "prior", "decoder"} <= set(args.stages):
        pipe = Pipeline.from_pretrained(model)
        pipe("a red cube", seed=0, stop_after="decoder").save(args.out / "cube.png")
        print(args.out / "cube.png")


if __name__ == "__main__":
    main()
