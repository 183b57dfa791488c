"""From the name of a model to a folder on this machine; a published one is downloaded and converted on first use."""

import json
import logging
import os
import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path

from t2i.core.assets import OFFLINE, asset, offline
from t2i.core.errors import DataError, FullDiskError, T2IError, UsageError, did_you_mean, lacks_memory, quoted
from t2i.core.paths import path_of
from t2i.hub.index import Checkpoint, models, parts
from t2i.io.download import download, locked
from t2i.io.files import writable, write
from t2i.version import __version__

log = logging.getLogger(__name__)


def cached(model: str) -> Path:
    """Where a published model lies once it is converted: below T2I_CACHE, or `t2i` in the user's cache folder."""
    below = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("T2I_CACHE") or Path(below, "t2i")).expanduser() / "models" / model


def find(name_or_folder: str | Path) -> Path | None:
    """As `resolve`, but None for a published model that is not on this machine."""
    folder = path_of(name_or_folder, "a model")
    if (folder / "model_index.json").is_file():
        return folder
    listed, name = models(), str(folder)
    published = name in listed and listed[name].published
    local = cached(name) if published else asset("weights", name.removeprefix("weights/"))
    if (published or local.name in listed) and (local / "model_index.json").is_file():
        return local
    if folder.is_dir():
        alone = (folder / "config.json").is_file()
        if any(folder.glob(".*model_index.json.*.tmp")):
            raise DataError(f"{folder}: saving this model was cut off, so it has no model_index.json; save it again")
        more = ": a stage, which t2i.load_stage opens and t2i assemble chains with others" if alone else ""
        raise UsageError(f"{folder}: no model_index.json in this folder, so it is not a pipeline{more}")
    if published:
        return None
    if (local / "config.json").is_file():
        model, opened = name.removeprefix("weights/").partition("/")[0], f"t2i.load_stage({name!r})"
        raise UsageError(f"{name} is a stage of the bundled model {model!r}, no pipeline; {opened} opens it")
    if name in listed:
        raise DataError(f"the files of the bundled model {name!r} are missing from {local}")
    if folder.is_file():
        raise UsageError(f"{folder} is a file; a model is a folder with model_index.json (t2i convert, t2i assemble)")
    whole = {key.rpartition("/")[2]: key for key in listed}.get(name, name)  # adm-64 is openai/adm-64
    raise UsageError(
        f"unknown model {quoted(name)}: neither a folder nor one that t2i info lists{did_you_mean(whole, listed)}"
    )


def resolve(name_or_folder: str | Path) -> Path:
    """A pipeline's folder, from a path, the name of a bundled model, or that of a published one.

    A path wins over a name, and only the first use of a published model touches the network. What an interrupted first
    use downloaded and converted is not done again.

    Raises:
        UsageError: there is neither, with the nearest known name; or the cache folder cannot be written.
        DataError: files of a bundled model are missing, or those of a published one cannot be had.
    """
    return find(name_or_folder) or _install(str(path_of(name_or_folder)))


def _install(model: str) -> Path:
    """Download and convert every part of a published model; `model_index.json` comes last."""
    from t2i.io.weights import load_config  # which imports torch

    entry, folder = models()[model], cached(model)
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
            size = sum(row.megabytes for rows in missing.values() for row in rows) / 1000
            log.info("%s: downloading about %.1f GB to %s, licence %s", model, size, folder, entry.licence)
        for place, rows in missing.items():
            _convert(rows, folder, place)
        content: dict[str, object] = {"_class_name": entry.pipeline, "_t2i_version": __version__}
        content |= {place: ["t2i", load_config(folder / place)["stage"]] for place in entry.parts}
        content["settings"] = entry.settings
        write(folder / "model_index.json", json.dumps(content, indent=2).encode() + b"\n")
    return folder


def _missing(model: str) -> dict[str, list[Checkpoint]]:
    """The parts of a published model that are not converted yet."""
    return {place: rows for place, rows in parts(model).items() if not (cached(model) / place).is_dir()}


def _convert(rows: list[Checkpoint], folder: Path, place: str) -> None:
    """Fill `folder / place`; the downloaded files go then, since the stage holds the same numbers."""
    from t2i.convert.convert import convert_files

    files = [
        download(row.url, folder / row.filename, md5=row.md5) if row.url else _from_hub(row.hub or "", row.folder)
        for row in rows
    ]
    unfinished = folder / f"{place}.part"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        convert_files(files, unfinished, network=rows[0].config)
    except FullDiskError:
        raise
    except DataError:  # whole, but not what was expected: another try shall fetch it anew
        for row in rows:
            if row.url:
                (folder / row.filename).unlink(missing_ok=True)
        raise
    os.replace(unfinished, folder / place)
    for row in rows:
        if row.url:
            (folder / row.filename).unlink()


def _here(row: Checkpoint, folder: Path) -> bool:
    """Whether a checkpoint needs no network; the cache of Hugging Face's own client may hold a repository."""
    return row.url is None or (folder / row.filename).is_file()


def _from_hub(repository: str, folder: str = "") -> Path:
    """A folder of a repository in the cache of Hugging Face's client, "" for the whole: its config and its weights."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    from t2i.convert.folder import FOLDER_FILES

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
        if lacks_memory(error):
            raise
        raise DataError(f"{repository}: {(str(error).strip() or type(error).__name__).splitlines()[0]}") from error
