"""t2i: OpenAI's text-to-image lineage, from DDPM to DALL-E 3, one readable stage at a time."""

from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

from t2i.version import __version__

if TYPE_CHECKING:
    from t2i.pipeline.base import Pipeline
    from t2i.stages.registry import load_stage

__all__ = ["Pipeline", "__version__", "load_stage"]

# In a checkout `pipelines/` lies beside this package; in a wheel it is mapped inside. The guard needs two files beside
# the package, so it never fires in site-packages.
_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "pipelines" / "__init__.py").is_file():
    __path__.append(str(_root))


def __getattr__(name: str) -> Any:
    if name == "Pipeline":
        from t2i.pipeline.base import Pipeline

        return Pipeline
    if name == "load_stage":
        from t2i.stages.registry import load_stage

        return load_stage
    raise AttributeError(f"module 't2i' has no attribute {name!r}")
