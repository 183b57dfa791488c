"""How torch's threads wait for each other, which must be said before torch is imported."""

import os

QUIET = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Waiting threads sleep instead of spinning, see `examples/14_how_threads_wait.py` for what that is worth."""
_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def wait_quietly() -> None:
    """Let waiting threads sleep, also in processes that are started from this one, unless the user has said how they
    wait. It does nothing once torch is imported."""
    if not any(name in os.environ for name in _CHOICES):
        os.environ.update(QUIET)
