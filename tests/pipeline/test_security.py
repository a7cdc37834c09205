"""The notebook server is for this machine only."""

import subprocess

from lib.runs import store


def test_make_lab_listens_on_this_machine_only_and_asks_for_its_token():
    """Jupyter's default is a random token, which an option could take away."""
    command = ["make", "--dry-run", "lab", "PY=python"]
    done = subprocess.run(command, cwd=store.ROOT, capture_output=True, text=True, check=True)
    (call,) = [line for line in done.stdout.splitlines() if "jupyterlab" in line]
    assert call.split() == ["python", "-m", "jupyterlab", "--ip=127.0.0.1"]
