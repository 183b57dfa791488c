"""From names to folders: what the index says is true, and published models are fetched and converted once."""

import hashlib
import json
import logging
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from file_server import FileServer, serving
from manifests import UNCLIP, manifests, shapes

from t2i import Pipeline
from t2i.cli.describe import describe
from t2i.convert.convert import layouts
from t2i.core.config import parse
from t2i.core.errors import DataError, FullDiskError, UsageError
from t2i.hub import hub, index
from t2i.hub.index import Checkpoint, Entry, Index, models, parts, read_index
from t2i.io.weights import save_folder
from t2i.pipeline.loading import pipeline_class
from t2i.pipeline.slots import chain

MODELS, ROWS = models(), read_index().checkpoints
PUBLISHED = [name for name, entry in MODELS.items() if entry.published]
FILES = {file: entry for entry in manifests().values() for file in entry["files"]}
ELSEWHERE = {
    "clip/ViT-L-14": "clip/ViT-L-14 (OpenAI)",
    "laion/clip": "clip/ViT-L-14 (OpenAI)",
    "laion/prior": "dalle2-pytorch/prior (1.1.0)",
    "laion/decoder": "dalle2-pytorch/decoder v1.0.2 (1.1.0)",
}
"""Names of manifests that are not those of the index."""
BODIES = {name: random.Random(name).randbytes(300_000) for name in ("base", "upsample", "image", "text")}


def source(row: Checkpoint) -> str:
    """The file of a checkpoint, as the manifests name it."""
    return row.folder or row.hub or row.file or row.filename


# -- the index ---------------------------------------------------------------------------------------------------------


def test_every_published_file_is_listed_once() -> None:
    families = [row.family if row.url else "hub" for row in ROWS.values()]
    assert {f: families.count(f) for f in families} == {
        "hub": 18, "ddpm": 8, "iddpm": 8, "adm": 15, "glide": 6, "karlo": 4, "laion": 2,
    }  # fmt: skip
    assert len({row.url or (row.hub, row.folder, row.config) for row in ROWS.values()}) == len(ROWS)
    assert FILES.keys() <= {source(row) for row in ROWS.values()}


@pytest.mark.parametrize("name", ROWS)
def test_a_checkpoint_is_what_its_manifest_says(name: str) -> None:
    row = ROWS[name]
    if name == "karlo/statistics":  # of 768 embeddings, mean and deviation
        assert row.parameters == 2 * 768
        return
    entry = manifests(UNCLIP).get(ELSEWHERE.get(name, name))
    entry = entry or FILES.get(source(row), manifests()["ddpm/256 (diffusers)"] if row.hub else None)
    assert entry is not None
    assert row.parameters == entry["n_params"]
    assert row.megabytes == round(4 * row.parameters / 1e6, 1)
    assert row.family in (entry["family"], entry["family"].removesuffix("-diffusers"), name.split("/")[0])
    assert (row.stage, row.config) in {(layout.stage, layout.name) for layout in layouts()}
    assert (row.url or "https://").startswith("https://")
    assert len(row.md5 or "0" * 32) == 32
    assert row.licence


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_fits_its_pipeline(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2i.text.tokenizers.TokenizerConfig.build", lambda _: None)
    entry = MODELS[name]
    cls = pipeline_class(entry.pipeline)
    accepts = {slot.name: slot.accepts for slot in cls.slots}
    stages = {place: {row.stage for row in rows} for place, rows in parts(name).items()}
    assert list(stages) == chain(cls.slots, stages)
    assert all(len(kinds) == 1 and kinds <= {*accepts[place]} for place, kinds in stages.items())
    licences = {row.licence for rows in parts(name).values() for row in rows}
    assert licences - {"MIT"} == {entry.licence} - {"MIT"}, "MIT forbids nothing that others allow"
    files = [PurePosixPath(source(row)).name for rows in parts(name).values() for row in rows if row.url]
    assert len(set(files)) == len(files), "they lie in one folder while they wait for their conversion"
    monkeypatch.setattr("t2i.stages.clip.model.ClipEncoder.fingerprint", lambda _: (1.0,))
    networks = {place: network(rows[0].config) for place, rows in parts(name).items()}
    settings = cls(networks, entry.settings).settings  # which checks that they fit each other
    for what, values in entry.settings.items():
        assert settings[what] | values == settings[what]


@cache
def network(name: str) -> torch.nn.Module:
    """A published network without its numbers."""
    layout = next(layout for layout in layouts() if layout.name == name)
    with torch.device("meta"):
        return layout.model(layout.config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hub": "us/it"}, "a url or a hub, one of them"),
        ({"url": None}, "a url or a hub, one of them"),
        ({"parametres": 1}, r"key 'checkpoints\.base\.parametres', did you mean 'checkpoints\.base\.parameters'"),
        ({"parameters": "many"}, "parameters"),
    ],
)
def test_a_wrong_row_is_refused(change: dict[str, Any], words: str) -> None:
    row = _row("https://us/base.pt", b"").model_dump(exclude_none=True)
    with pytest.raises(UsageError, match=words):
        parse({"checkpoints": {"base": row | change}}, Index, source="index.yaml")


def test_a_model_of_an_unknown_checkpoint_is_refused() -> None:
    row, model = _row("https://us/base.pt", b""), {"description": "", "licence": "MIT", "parts": {"decoder": "bas"}}
    with pytest.raises(UsageError, match="pair: unknown checkpoint 'bas', did you mean 'base'"):
        parse({"checkpoints": {"base": row.model_dump()}, "models": {"pair": model}}, Index, source="index.yaml")


def test_every_checkpoint_is_part_of_a_model() -> None:
    used = [id(row) for name in PUBLISHED for rows in parts(name).values() for row in rows]
    assert {id(row) for row in ROWS.values()} == set(used)


# -- first use ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FileServer]:
    """An index of one published model, `us/pair`, whose files this machine serves; an empty cache."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("T2I_CACHE", str(tmp_path / "cache"))
    for name in hub.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("t2i.io.download.WAIT", 0.0)
    with serving({f"/{name}.pt": body for name, body in BODIES.items()}) as state:
        rows = {name: _row(f"{state.url}/{name}.pt", body) for name, body in BODIES.items()}
        model = Entry.model_validate({
            "description": "two stages", "licence": "MIT", "pipeline": "glide", "settings": {"steps": {"decoder": 7}},
            "parts": {"decoder": "base", "upsampler": "upsample", "clip": ["image", "text"]},
        })  # fmt: skip
        known = Index(checkpoints=rows, models={"shapes": MODELS["shapes"], "us/pair": model})
        monkeypatch.setattr(index, "read_index", lambda: known)
        yield state


def _row(url: str, body: bytes) -> Checkpoint:
    what = {"family": "ours", "stage": "decoder", "config": "a network", "licence": "MIT"}
    md5 = hashlib.md5(body).hexdigest()
    return Checkpoint.model_validate({"url": url, "md5": md5, "parameters": 75_000, "megabytes": 0.3, **what})


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The files of every conversion; each stage is one of what it was made of."""
    calls: list[list[str]] = []

    def convert(paths: Sequence[Path], out: Path, *, network: str | None = None) -> None:
        calls.append([path.name for path in paths])
        assert network == "a network"
        assert b"".join(path.read_bytes() for path in paths) == b"".join(BODIES[path.stem] for path in paths)
        save_folder(out, {"stage": f"of {paths[0].stem}"}, {"x": torch.zeros(1)})

    monkeypatch.setattr("t2i.convert.convert.convert_files", convert)
    return calls


def test_the_first_use_fetches_and_converts_the_second_touches_nothing(
    server: FileServer, converted: list[list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert hub.find("us/pair") is None
    with caplog.at_level(logging.INFO, "t2i"):
        folder = hub.resolve("us/pair")
    assert folder == tmp_path / "cache" / "models" / "us" / "pair"
    assert [r.getMessage() for r in caplog.records] == [f"us/pair: downloading about 0.0 GB to {folder}, licence MIT"]
    assert converted == [["base.pt"], ["upsample.pt"], ["image.pt", "text.pt"]]
    assert {path.name for path in folder.iterdir()} == {"decoder", "upsampler", "clip", "model_index.json"}
    content = json.loads((folder / "model_index.json").read_text())
    assert content.pop("_t2i_version")
    assert content == {
        "_class_name": "glide", "decoder": ["t2i", "of base"], "upsampler": ["t2i", "of upsample"],
        "clip": ["t2i", "of image"], "settings": {"steps": {"decoder": 7}},
    }  # fmt: skip
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert hub.resolve("us/pair") == hub.find("us/pair") == folder
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert len(server.served) == 4
    assert len(converted) == 3


def test_a_full_disk_does_not_cost_the_download(
    server: FileServer, converted: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But what cannot be read is fetched anew."""
    for error, left in ((FullDiskError("no space left"), {"base.pt"}), (DataError("damaged"), set())):
        monkeypatch.setattr("t2i.convert.convert.convert_files", Mock(side_effect=error))
        with pytest.raises(type(error)):
            hub.resolve("us/pair")
        assert {path.name for path in hub.cached("us/pair").glob("*.pt")} == left


def test_an_interrupted_first_use_continues(
    server: FileServer, converted: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import t2i.convert.convert

    convert = t2i.convert.convert.convert_files

    def dies(paths: Sequence[Path], out: Path, *, network: str | None = None) -> None:
        convert(paths, out, network=network)
        if paths[0].stem == "upsample":  # its stage is written, but nobody knows whether all of it
            raise KeyboardInterrupt

    monkeypatch.setattr("t2i.convert.convert.convert_files", dies)
    with pytest.raises(KeyboardInterrupt):
        hub.resolve("us/pair")
    assert hub.find("us/pair") is None
    monkeypatch.setattr("t2i.convert.convert.convert_files", convert)
    folder = hub.resolve("us/pair")
    assert len(server.served) == 4, "no file twice"
    assert converted == [["base.pt"], ["upsample.pt"], ["upsample.pt"], ["image.pt", "text.pt"]]
    assert {path.name for path in folder.iterdir()} == {"decoder", "upsampler", "clip", "model_index.json"}


def test_several_first_uses_at_once_do_the_work_once(server: FileServer, converted: list[list[str]]) -> None:
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(hub.resolve, ["us/pair"] * 3))
    assert folders == {hub.cached("us/pair")}
    assert len(server.served) == 4
    assert len(converted) == 3
    assert not (hub.cached("us/pair") / ".lock").exists()


def test_a_damaged_file_is_not_converted(server: FileServer, converted: list[list[str]]) -> None:
    server.files["/upsample.pt"] = b"something else"
    with pytest.raises(DataError, match=r"upsample\.pt: damaged"):
        hub.resolve("us/pair")
    assert converted == [["base.pt"]]
    assert hub.find("us/pair") is None


@pytest.mark.parametrize("variable", hub.OFFLINE)
def test_offline_only_what_is_here_opens(
    server: FileServer, converted: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(DataError, match=r"^us/pair is not on this machine, and .*forbids to download it$"):
        hub.resolve("us/pair")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv(variable, "0")
    folder = hub.resolve("us/pair")
    monkeypatch.setenv(variable, "1")
    assert hub.resolve("us/pair") == folder
    assert len(server.served) == 4


def test_a_cache_that_cannot_be_written_is_one_line(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("T2I_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"cannot create .*: Not a directory \(T2I_CACHE names another folder"):
        hub.resolve("us/pair")
    assert server.ranges == []


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("T2I_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.cached("a/b") == tmp_path / ".cache" / "t2i" / "models" / "a" / "b"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert hub.cached("a/b") == Path("/xdg/t2i/models/a/b")
    monkeypatch.setenv("T2I_CACHE", "~/mine")
    assert hub.cached("a/b") == tmp_path / "mine" / "models" / "a" / "b"


# -- names and folders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("opnai/glide", "openai/glide"),
        ("adm-256", "openai/adm-256"),
        ("shape", "shapes"),
        ("google/ddpm-cifar-32", "google/ddpm-cifar10-32"),
    ],
)
def test_unknown_names_get_a_hint(name: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"unknown model '{name}': .*, did you mean '{meant}'"):
        hub.resolve(name)
    with pytest.raises(UsageError, match="unknown checkpoint 'adm/64_diffusion', did you mean 'adm/64x64_diffusion'"):
        index.checkpoint("adm/64_diffusion")


def test_folders_win_over_names(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "us" / "pair"
    mine.mkdir(parents=True)
    with pytest.raises(UsageError, match=r"us/pair: no model_index\.json in this folder"):
        hub.resolve("us/pair")
    (mine / "model_index.json").write_text("{}")
    assert hub.resolve("us/pair") == Path("us/pair")
    assert hub.resolve("shapes").is_dir()
    assert server.ranges == []


def test_info_tells_what_is_published_without_fetching_it(server: FileServer) -> None:
    text = describe("us/pair")
    assert "us/pair: glide, not downloaded yet; two stages" in text
    assert "decoder              0.07 M parameters     0 MB  steps 7" in text
    assert "clip                 0.15 M parameters     1 MB" in text
    assert "licence MIT; first use downloads 1 MB to " in text
    assert "us/ (MIT) pair 1 MB" in describe()
    assert server.ranges == []


# -- Hugging Face ------------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the Hub holds, or an error it answers with."""
    from huggingface_hub.errors import EntryNotFoundError

    here: dict[str, Any] = {}

    def fetch(repo: str, file: str, *, local_files_only: bool) -> str:
        answer = here.get(file, EntryNotFoundError(f"no {file}"))
        if isinstance(answer, Exception):
            raise answer
        path = tmp_path / "hf" / repo / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(answer)
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    return here


def test_a_repository_gives_its_config_and_its_safest_weights(repository: dict[str, Any]) -> None:
    repository |= {"config.json": b"{}", "diffusion_pytorch_model.bin": b"old", "other.bin": b"no"}
    assert {path.name for path in hub._from_hub("us/bin").iterdir()} == {"config.json", "diffusion_pytorch_model.bin"}
    repository["diffusion_pytorch_model.safetensors"] = b"new"
    names = {path.name for path in hub._from_hub("us/safe").iterdir()}
    assert names == {"config.json", "diffusion_pytorch_model.safetensors"}
    repository |= {"text/config.json": b"{}", "text/pytorch_model.bin": b"of transformers"}
    folder = hub._from_hub("us/parts", "text")
    assert folder.name == "text"
    assert {path.name for path in folder.iterdir()} == {"config.json", "pytorch_model.bin"}


def test_errors_of_the_hub_are_one_line(repository: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository["config.json"] = OSError("401 Client Error.\n\nRepository Not Found for url: x\nPlease log in")
    with pytest.raises(DataError, match=r"^us/pair: 401 Client Error\.$"):
        hub._from_hub("us/pair")
    repository["config.json"] = LocalEntryNotFoundError("two\nlines")
    with pytest.raises(
        DataError, match=r"^us/pair is not in the cache of Hugging Face, and the Hub cannot be reached$"
    ):
        hub._from_hub("us/pair")
    monkeypatch.setenv("T2I_OFFLINE", "1")
    with pytest.raises(DataError, match=r"T2I_OFFLINE or HF_HUB_OFFLINE forbids to download it$"):
        hub._from_hub("us/pair")


# -- all of it ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_published_model_draws(server: FileServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the bytes of a released file to a picture; only its numbers are made up."""
    generator = torch.Generator().manual_seed(0)
    state = {k: 0.05 * torch.randn(s, generator=generator) for k, s in shapes("ddpm/cifar10 (pesser)").items()}
    torch.save(state, tmp_path / "file")
    body = (tmp_path / "file").read_bytes()
    digest = hashlib.md5(body).hexdigest()
    row = ROWS["pesser/ddpm-cifar10"].model_copy(update={"url": f"{server.url}/x?dl=1", "md5": digest})
    server.files, server.cuts = {"/x": body}, [100_000_000]
    known = Index(
        checkpoints={"pesser/ddpm-cifar10": row}, models={"pesser/ddpm-cifar10": MODELS["pesser/ddpm-cifar10"]}
    )
    monkeypatch.setattr(index, "read_index", lambda: known)
    pipe = Pipeline.from_pretrained("pesser/ddpm-cifar10", device="cpu")
    assert pipe.source == "pesser/ddpm-cifar10"
    assert pipe.settings["steps"] == {"decoder": 1000}
    assert sum(server.served) == len(body)
    assert pipe(seed=0, steps=2).images[0].size == (32, 32)  # type: ignore[call-arg]


def test_a_stage_is_named_for_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"not a pipeline: a stage, which t2i\.load_stage opens"):
        hub.resolve(tmp_path)
