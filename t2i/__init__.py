"""t2i: OpenAI's text-to-image lineage, from DDPM to DALL-E 3, one readable stage at a time."""

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

from t2i.version import __version__

if TYPE_CHECKING:
    from t2i.pipeline.base import Pipeline
    from t2i.pipelines.adm import ADM
    from t2i.pipelines.dalle2 import DALLE2
    from t2i.pipelines.dalle3 import DALLE3
    from t2i.pipelines.ddpm import DDPM
    from t2i.pipelines.glide import GLIDE
    from t2i.stages.registry import load_stage

__all__ = ["ADM", "DALLE2", "DALLE3", "DDPM", "GLIDE", "Pipeline", "__version__", "load_stage"]

_WHERE = {
    "Pipeline": "t2i.pipeline.base",
    "DALLE2": "t2i.pipelines.dalle2",
    "DALLE3": "t2i.pipelines.dalle3",
    "GLIDE": "t2i.pipelines.glide",
    "ADM": "t2i.pipelines.adm",
    "DDPM": "t2i.pipelines.ddpm",
    "load_stage": "t2i.stages.registry",
}

# In a checkout `pipelines/` lies beside this package; in a wheel it is mapped inside. The guard needs two files beside
# the package, so it never fires in site-packages.
_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "pipelines" / "__init__.py").is_file():
    __path__.append(str(_root))


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 't2i' has no attribute {name!r}")
    return getattr(_import_module(_WHERE[name]), name)
