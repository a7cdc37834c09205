"""Code and notebooks are as ruff formats them, and a room of lib imports lower rooms only."""

import subprocess
import sys

from lib.runs import store


def test_make_lint_finds_nothing():
    command = ["make", "lint", f"PY={sys.executable}"]
    done = subprocess.run(command, cwd=store.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
