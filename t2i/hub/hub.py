"""From the name of a model to a folder on this machine; a published one is downloaded and converted on first use."""

import json
import logging
import os
import shutil
from contextlib import suppress
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

from t2i.core.assets import OFFLINE, asset, offline
from t2i.core.errors import DataError, FullDiskError, T2IError, UsageError, did_you_mean
from t2i.io.download import download, locked
from t2i.io.files import writable, write
from t2i.io.weights import load_config
from t2i.version import __version__

log = logging.getLogger(__name__)


def index() -> dict[str, dict[str, Any]]:
    """Every model known by name, from `weights/index.yaml`; published ones have `parts`, bundled ones do not."""
    return _tables()["models"]


def checkpoint(name: str) -> dict[str, Any]:
    """What `weights/index.yaml` knows of a published file; UsageError with the nearest name if nothing."""
    rows = _tables()["checkpoints"]
    if name not in rows:
        raise UsageError(f"unknown checkpoint {name!r}{did_you_mean(name, rows)}")
    return rows[name]


def presets() -> dict[str, dict[str, Any]]:
    """How others sample unCLIP's chain, by name: `settings` of a pipeline, and keys of its prior's config."""
    return _tables()["presets"]


def parts(model: str) -> dict[str, list[dict[str, Any]]]:
    """The checkpoints of a published model by place; a noised CLIP has two."""
    listed = index()[model]["parts"].items()
    return {place: [checkpoint(n) for n in ([names] if isinstance(names, str) else names)] for place, names in listed}


def megabytes(model: str) -> float:
    """What the files of a published model weigh, about."""
    return sum(row["megabytes"] for rows in parts(model).values() for row in rows)


def cached(model: str) -> Path:
    """Where a published model lies once it is converted: below T2I_CACHE, or `t2i` in the user's cache folder."""
    below = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("T2I_CACHE") or Path(below, "t2i")).expanduser() / "models" / model


def find(name_or_folder: str | Path) -> Path | None:
    """As `resolve`, but None for a published model that is not on this machine."""
    folder = Path(name_or_folder)
    if (folder / "model_index.json").is_file():
        return folder
    models, name = index(), str(name_or_folder)
    published = "parts" in models.get(name, {})
    local = cached(name) if published else asset("weights", name.removeprefix("weights/"))
    if (published or local.name in models) and (local / "model_index.json").is_file():
        return local
    if folder.is_dir():
        alone = (folder / "config.json").is_file()
        more = ": a stage, which t2i.load_stage opens and t2i assemble chains with others" if alone else ""
        raise UsageError(f"{folder}: no model_index.json in this folder, so it is not a pipeline{more}")
    if published:
        return None
    if name in models:
        raise DataError(f"the files of the bundled model {name!r} are missing from {local}")
    whole = {key.rpartition("/")[2]: key for key in models}.get(name, name)  # adm-64 is openai/adm-64
    raise UsageError(
        f"unknown model {name!r}: neither a folder nor one that t2i info lists{did_you_mean(whole, models)}"
    )


def resolve(name_or_folder: str | Path) -> Path:
    """A pipeline's folder, from a path, the name of a bundled model, or that of a published one.

    A path wins over a name, and only the first use of a published model touches the network. What an interrupted first
    use downloaded and converted is not done again.

    Raises:
        UsageError: there is neither, with the nearest known name; or the cache folder cannot be written.
        DataError: files of a bundled model are missing, or those of a published one cannot be had.
    """
    return find(name_or_folder) or _install(str(name_or_folder))


@cache
def _tables() -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a tenth of the time
    return yaml.load(asset("weights", "index.yaml").read_text(), Loader=loader)


def _install(model: str) -> Path:
    """Download and convert every part of a published model; `model_index.json` comes last."""
    entry, folder = index()[model], cached(model)
    if offline() and not all(_here(row, folder) for rows in _missing(model).values() for row in rows):
        raise DataError(f"{model} is not on this machine, and {' or '.join(OFFLINE)} forbids to download it")
    try:
        writable(folder)
    except T2IError as error:
        raise type(error)(f"{error} (T2I_CACHE names another folder for downloads)") from None
    with locked(folder / ".lock"):
        if (folder / "model_index.json").is_file():  # another process was faster
            return folder
        missing = _missing(model)
        if not offline():
            size = sum(row["megabytes"] for rows in missing.values() for row in rows) / 1000
            log.info("%s: downloading about %.1f GB to %s, licence %s", model, size, folder, entry["licence"])
        for place, rows in missing.items():
            _convert(rows, folder, place)
        content = {"_class_name": entry["pipeline"], "_t2i_version": __version__}
        content |= {place: ["t2i", load_config(folder / place)["stage"]] for place in entry["parts"]}
        content["settings"] = entry.get("settings", {})
        write(folder / "model_index.json", json.dumps(content, indent=2).encode() + b"\n")
    return folder


def _missing(model: str) -> dict[str, list[dict[str, Any]]]:
    """The parts of a published model that are not converted yet."""
    return {place: rows for place, rows in parts(model).items() if not (cached(model) / place).is_dir()}


def _convert(rows: list[dict[str, Any]], folder: Path, place: str) -> None:
    """Fill `folder / place`; the downloaded files go then, since the stage holds the same numbers."""
    from t2i.convert.convert import convert_files

    files = [
        _from_hub(row["hub"], row.get("folder", ""))
        if "hub" in row
        else download(row["url"], _file(row, folder), md5=row.get("md5"))
        for row in rows
    ]
    unfinished = folder / f"{place}.part"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        convert_files(files, unfinished, network=rows[0]["config"])
    except FullDiskError:
        raise
    except DataError:  # whole, but not what was expected: another try shall fetch it anew
        for row in rows:
            if "url" in row:
                _file(row, folder).unlink(missing_ok=True)
        raise
    os.replace(unfinished, folder / place)
    for row in rows:
        if "url" in row:
            _file(row, folder).unlink()


def _file(row: dict[str, Any], folder: Path) -> Path:
    return folder / PurePosixPath(row.get("file") or urlsplit(row["url"]).path).name


def _here(row: dict[str, Any], folder: Path) -> bool:
    """Whether a checkpoint needs no network; the cache of Hugging Face's own client may hold a repository."""
    return "hub" in row or _file(row, folder).is_file()


def _from_hub(repository: str, folder: str = "") -> Path:
    """A folder of a repository in the cache of Hugging Face's client, "" for the whole: its config and its weights."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    from t2i.convert.convert import FOLDER_FILES

    fetch = partial(hf_hub_download, repository, local_files_only=offline())
    *names, last = (f"{folder}/{name}" if folder else name for name in FOLDER_FILES)
    try:
        config = fetch(f"{folder}/config.json" if folder else "config.json")
        if not folder:
            with suppress(EntryNotFoundError):
                fetch("scheduler_config.json")
        for name in names:
            with suppress(EntryNotFoundError):
                fetch(name)
                break
        else:
            fetch(last)
        return Path(config).parent
    except LocalEntryNotFoundError:
        why = f"and {' or '.join(OFFLINE)} forbids to download it" if offline() else "and the Hub cannot be reached"
        raise DataError(f"{repository} is not in the cache of Hugging Face, {why}") from None
    except Exception as error:  # its HTTP client raises others than it promises
        raise DataError(f"{repository}: {(str(error).strip() or type(error).__name__).splitlines()[0]}") from error
