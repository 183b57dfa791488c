"""From the name of a model to a folder on this machine."""

from pathlib import Path

import yaml

from t2i.assets import asset
from t2i.errors import DataError, UsageError, did_you_mean


def index() -> dict[str, dict]:
    """Every model known by name, from `weights/index.yaml`."""
    return yaml.safe_load(asset("weights", "index.yaml").read_text())["models"]


def resolve(name_or_folder: str | Path) -> Path:
    """A pipeline's folder, from a bundled name or a path. A path wins over a name and never touches the network.

    Raises UsageError, with the nearest known name, when there is neither; DataError when a bundled model's files are
    not there.
    """
    folder = Path(name_or_folder)
    if (folder / "model_index.json").is_file():
        return folder
    known = index()
    name = str(name_or_folder)
    bundled = asset("weights", name.removeprefix("weights/"))
    if bundled.name in known and (bundled / "model_index.json").is_file():
        return bundled
    if name in known and not folder.is_dir():
        raise DataError(f"the files of the bundled model {name!r} are missing from {bundled.parent}")
    if folder.is_dir():
        raise UsageError(f"{folder}: no model_index.json in this folder, so it is not a pipeline")
    raise UsageError(
        f"unknown model {name!r}{did_you_mean(name, known)}: neither a folder nor one of {', '.join(known)}"
    )
