"""The house stands as drawn: imports flow downwards, stages do not know each other, every package is shipped."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LEVELS = [
    {"version"},
    {"core"},
    {"io"},
    {"diffusion", "text", "data"},
    {"nn"},
    {"keymaps"},
    {"stages.stage"},
    {"stages.follow", "stages.dalle2_pytorch.grid"},
    {"stages"},
    {"stages.registry", "train"},
    {"convert", "measures"},
    {"hub"},
    {"pipeline", "run"},
    {"pipelines", "evals"},
    {"cli"},
    {"__main__"},
]
"""From the ground up; what stands in one line does not know each other. A package is named by its own name, or by that
of the folder that it lies in."""
BUILDS_ON = {
    "pipelines.adm": {"pipelines.ddpm"},  # ADM's story is IDDPM's with a classifier beside it
    "pipelines.dalle2": {"pipelines.inpaint", "pipelines.latents", "pipelines.manipulations", "pipelines.upsample"},
    "pipelines.manipulations": {"pipelines.latents"},  # change what those take apart
    "pipelines.glide": {"pipelines.inpaint"},
}
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def sources() -> list[Path]:
    return sorted([*(ROOT / "t2i").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")])


def unit(module: str) -> tuple[str, str]:
    """`t2i.stages.prior.task` → ("stages", "stages.prior"); the second is what may import itself freely."""
    parts = module.split(".")[1:]
    if not parts:
        return "", ""
    depth = 3 if parts[:2] == ["stages", "dalle2_pytorch"] else 2 if parts[0] in ("stages", "pipelines") else 1
    own = ".".join(parts[:depth])
    return own if own in LEVEL else parts[0], own


def module_of(path: Path) -> str:
    relative = path.relative_to(ROOT).with_suffix("")
    parts = list(relative.parts)
    if parts[0] == "pipelines":
        parts = ["t2i", *parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            folder = node.module in ("t2i", "t2i.pipelines")
            found += [f"{node.module}.{alias.name}" if folder else str(node.module) for alias in node.names]
    return found


def faults(module: str, imported: list[str]) -> list[str]:
    group, own = unit(module)
    wrong = []
    for name in imported:
        if name.split(".")[0] in ("pipelines", "weights", "configs"):
            wrong.append(f"{module} imports {name} as a top-level package")
        if not name.startswith("t2i.") or not group:
            continue
        other_group, other = unit(name)
        if other == own or other in BUILDS_ON.get(own, ()):
            continue
        if other_group not in LEVEL:
            wrong.append(f"{module} imports {name}, which has no level")
        elif LEVEL[other_group] >= LEVEL[group]:
            wrong.append(f"{module} (level {LEVEL[group]}) imports {name} (level {LEVEL[other_group]})")
    return wrong


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_flow_downwards(path: Path) -> None:
    module = module_of(path)
    group, _ = unit(module)
    assert not group or group in LEVEL, f"{module}: give it a level"
    assert faults(module, imports(path)) == []


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("t2i.stages.prior.task", "t2i.stages.decoder.model"),
        ("t2i.diffusion.process", "t2i.nn.unet"),
        ("t2i.train.loop", "t2i.stages.registry"),
        ("t2i.stages.registry", "t2i.convert.convert"),
        ("t2i.stages.prior.task", "t2i.train.loop"),
        ("t2i.pipeline.base", "t2i.pipelines.dalle2"),
        ("t2i.pipelines.dalle2", "pipelines.glide"),
        ("t2i.pipelines.dalle2", "t2i.pipelines.glide"),
        ("t2i.pipelines.inpaint", "t2i.pipelines.dalle2"),
        ("t2i.stages.stage", "t2i.stages.prior.model"),
        ("t2i.stages.dalle2_pytorch.prior.model", "t2i.stages.dalle2_pytorch.decoder.model"),
    ],
)
def test_upward_and_sideways_imports_are_found(module: str, imported: str) -> None:
    assert faults(module, [imported])


def test_every_package_is_shipped() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    tree = {module_of(p) for p in sources() if p.name == "__init__.py"}
    assert tree | {"t2i.weights", "t2i.configs"} == listed
