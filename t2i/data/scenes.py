"""The shapes world as a source: scenes that are drawn when they are asked for, and not loaded."""

from collections.abc import Sequence

from t2i.core.errors import UsageError, did_you_mean
from t2i.data.config import DataConfig
from t2i.data.source import Sample

VAL_SCENES = 1 << 62
"""The bit of a scene's seed that is set in held-out scenes and in no other."""


class ShapesSource:
    """Scenes of the procedural world, drawn on demand; see `t2i.data.shapes`. Without `image` among `needs` none is
    rendered.

    Raises UsageError for caption kinds, crops and arrays that the world does not have.
    """

    def __init__(self, config: DataConfig, split: str, needs: Sequence[str] = ("image", "caption")) -> None:
        from t2i.data import shapes

        self.config, self.split, self.needs = config, split, needs
        for kind in config.captions:
            if kind not in shapes.KINDS:
                hint = did_you_mean(kind, shapes.KINDS)
                raise UsageError(
                    f"data.captions: shapes have no kind {kind!r}; kinds are {', '.join(shapes.KINDS)}{hint}"
                )
        if config.flip:
            raise UsageError("data.flip=true: shapes are not mirrored, their captions say what is left and right")
        if config.crop not in (None, config.size) and (config.crop % 4 or config.size % 4):
            raise UsageError(f"data.crop={config.crop} and data.size={config.size} must be multiples of 4 for shapes")

    def draw(self, seeds: list[int]) -> list[Sample]:
        """One sample per 63-bit seed; training and validation seeds never meet."""
        from t2i.data import shapes

        config, weights = self.config, self.config.captions or shapes.WEIGHTS
        counts = config.num_things or shapes.NUM_THINGS
        seeds = [seed | VAL_SCENES if self.split == "val" else seed & ~VAL_SCENES for seed in seeds]
        crop = None if config.crop == config.size else config.crop
        if "image" in self.needs:
            drawn = shapes.draw(seeds, config.size, crop, weights=weights, num_things=counts)
        else:
            drawn = shapes.texts(seeds, weights, counts)
        names = [name for name in ("image", "caption", "key", "scene", "label") if name in drawn]
        kinds = [kind for kind in shapes.KINDS if kind in self.needs]
        return [
            {name: drawn[name][i] for name in names} | {kind: drawn["captions"][i][kind] for kind in kinds}
            for i in range(len(seeds))
        ]
