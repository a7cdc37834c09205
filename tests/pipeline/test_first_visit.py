"""The first visit: on a fresh clone both commands pass, in either order, and change nothing."""

import subprocess
import sys

import pytest

from lib.runs.store import ROOT

pytestmark = pytest.mark.long
SEQUENCES = {
    "reproduce first": ["reproduce", "test", "reproduce", "test"],
    "test first": ["test", "reproduce"],
}


def git(*arguments, folder):
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("sequence", SEQUENCES.values(), ids=SEQUENCES)
def test_both_commands_pass_on_a_fresh_clone_and_leave_it_clean(sequence, tmp_path):
    """The clone runs in this environment (PY), so that nothing is installed again."""
    clone = tmp_path / "clone"
    git("clone", "--quiet", "--depth", "1", f"file://{ROOT}", str(clone), folder=ROOT)
    for target in sequence:
        command = ["make", target, f"PY={sys.executable}"]
        done = subprocess.run(command, cwd=clone, capture_output=True, text=True)
        assert done.returncode == 0, f"make {target}: {done.stdout[-5000:]}{done.stderr[-2000:]}"
        assert not git("status", "--porcelain", folder=clone), f"make {target} changed files"
