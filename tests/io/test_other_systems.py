"""What other systems lack is asked for when it is needed, not at import."""

import subprocess
import sys

MISSING = """
import os, signal, sys
import multiprocessing, multiprocessing.util, subprocess, logging, random, tempfile, threading
import torch, torch.utils.data, PIL.Image, transformers, accelerate, open_clip, huggingface_hub, filelock, tqdm, typer
for name in ("fcntl", "resource"):
    sys.modules[name] = None
del signal.SIGHUP, signal.SIGUSR1, os.register_at_fork, os.O_NONBLOCK, os.O_NOCTTY
import t2i, t2i.pipeline.base, t2i.cli.main, t2i.run
from pathlib import Path
from t2i.io.lock import sole_writer
from t2i.train.stop import StopRequest
with sole_writer(Path(sys.argv[1])) as locked, StopRequest():
    assert not locked
assert t2i.core.reading.read_bytes(sys.argv[2], 10) == b"x"
"""


def test_t2i_can_be_imported_and_read_files_without_what_posix_alone_has(tmp_path):
    (tmp_path / "file").write_text("x")
    done = subprocess.run(
        [sys.executable, "-c", MISSING, str(tmp_path), str(tmp_path / "file")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot be locked (not on this system)") == 1
