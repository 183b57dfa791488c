"""t2i works as a bare checkout, as a wheel and as an editable install, from the root and from elsewhere."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PROBE = """
import t2i, t2i.pipelines.dalle2
from t2i.core.assets import asset
from t2i.run import load_run
assert t2i.Pipeline.__name__ == "Pipeline"
assert asset("configs", "shapes", "decoder.yaml").is_file(), asset("configs")
assert asset("weights", "index.yaml").is_file(), asset("weights")
assert load_run("configs/shapes/decoder.yaml", []).stage == "decoder"
print(t2i.__file__)
"""
LEAKS = "import importlib.util as u; print([n for n in ('pipelines', 'weights', 'configs') if u.find_spec(n)])"


def python(executable: str | Path, code: str, cwd: Path, path: str = "") -> str:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "PYTHONPATH": path}
    done = subprocess.run([str(executable), "-c", code], cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_bare_checkout(tmp_path: Path) -> None:
    assert python(sys.executable, PROBE, ROOT) == str(ROOT / "t2i" / "__init__.py")
    assert python(sys.executable, PROBE, tmp_path, path=str(ROOT)) == str(ROOT / "t2i" / "__init__.py")


def test_the_guard_does_not_fire_without_a_checkout(tmp_path: Path) -> None:
    (tmp_path / "t2i").mkdir()
    (tmp_path / "t2i" / "__init__.py").write_text((ROOT / "t2i" / "__init__.py").read_text())
    assert python(sys.executable, "import t2i; print(len(t2i.__path__))", tmp_path) == "1"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(source)], check=True)
    return next(out.glob("*.whl"))


def environment(folder: Path) -> Path:
    """A virtual environment that sees the packages of this one."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    site = subprocess.run(
        [sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    ).stdout.strip()
    target = next(folder.glob("lib/python*/site-packages"))
    paths = [p for p in Path(site).iterdir() if not p.name.startswith(("t2i", "__editable__", "_t2i"))]
    for path in paths:
        if not (target / path.name).exists():
            (target / path.name).symlink_to(path)
    return folder / "bin" / "python"


@pytest.mark.slow
def test_wheel(wheel: Path, tmp_path: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"t2i"}
    assert "t2i/pipelines/dalle2.py" in names
    assert "t2i/configs/shapes/decoder.yaml" in names
    assert any(name.startswith("t2i/weights/") for name in names)
    executable = environment(tmp_path / "venv")
    subprocess.run([str(executable), "-m", "pip", "install", "-q", "--no-deps", str(wheel)], check=True)
    assert "site-packages" in python(executable, PROBE, tmp_path)
    assert python(executable, PROBE, ROOT) == str(ROOT / "t2i" / "__init__.py")
    assert python(executable, LEAKS, tmp_path) == "[]"
    shared = "import t2i; print(list(t2i.Pipeline.from_pretrained('shapes-ar', device='cpu').parts))"
    assert python(executable, shared, tmp_path) == "['clip', 'prior', 'decoder', 'up256', 'up1024']"


@pytest.mark.slow
def test_editable(tmp_path: Path) -> None:
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    executable = environment(tmp_path / "venv")
    subprocess.run([str(executable), "-m", "pip", "install", "-q", "--no-deps", "-e", str(source)], check=True)
    for cwd in (tmp_path, source):
        assert python(executable, PROBE, cwd) == str(source / "t2i" / "__init__.py")
    assert python(executable, LEAKS, tmp_path) == "[]"
