"""Whatever ends a reproduction, the same command completes it, with the same numbers."""

import os
import random
import shutil
import subprocess
import textwrap

import pytest

from lib.runs import settings
from tests.pipeline import faults

KILLS = 50
LONGEST = 30.0  # seconds between two kills at most: long enough for most jobs
PART = ("--paper", "vje")
NOTEBOOK = "60_vje_likelihood"
AGAIN = "call the same command again"


def stamps(results):
    return {
        path.name.rsplit(".", 1)[0]: path.stat().st_mtime_ns
        for path in results.glob("smoke/.done/*.????????????")
    }


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The results of a reproduction that nothing disturbed."""
    results = tmp_path_factory.mktemp("undisturbed")
    done = faults.call(results)
    assert done.returncode == 0, done.stdout + done.stderr
    return results


@pytest.mark.long
def test_every_notebook_shows_stored_results_without_weights(undisturbed):
    assert not faults.not_shown(undisturbed, [entry["name"] for entry in settings.notebooks()])


@pytest.mark.long
def test_fifty_kills_change_nothing(undisturbed, tmp_path):
    """In as many rounds as fifty kills take, each ends with undisturbed numbers."""
    generator = random.Random(0)
    kills = 0
    while kills < KILLS:
        results = tmp_path / f"after{kills}"
        planned = []
        for _ in range(KILLS - kills):
            seconds = generator.uniform(0.5, LONGEST)
            planned.append(faults.Kill(seconds, everything=generator.random() < 0.5))
        killed = faults.reproduce_with_kills(results, planned)
        kills += killed.kills
        print(f"{killed.kills} kills, {kills} in all", flush=True)
        assert killed.done.returncode == 0, killed.done.stdout + killed.done.stderr
        assert not killed.broken and not killed.rewritten
        assert killed.finished_before, "no run was finished before the last kill"
        assert not faults.different_results(undisturbed, results)
        shutil.rmtree(results)


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """VJE in profile smoke, where the kernel of one notebook raises an error."""
    results = tmp_path_factory.mktemp("part") / "results"
    fault = tmp_path_factory.mktemp("fault")
    (fault / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
            import sys

            class Fault:
                def find_spec(self, name, path=None, target=None):
                    if name == "lib.pipeline":
                        raise RuntimeError("a fault put here by a test")

            if any("ipykernel" in word for word in sys.orig_argv):
                import psutil

                if {NOTEBOOK!r} in psutil.Process().parent().cmdline():
                    sys.meta_path.insert(0, Fault())
        """)
    )
    path = os.pathsep.join([str(fault), os.environ.get("PYTHONPATH", "")])
    return results, faults.call(results, *PART, PYTHONPATH=path)


@pytest.mark.long
def test_a_job_that_raises_stops_no_other(part):
    results, failed = part
    output = failed.stdout + failed.stderr
    kept = results / "smoke" / "failed" / f"{NOTEBOOK}.ipynb"
    assert failed.returncode != 0 and "Traceback" not in output
    assert f"{NOTEBOOK} failed: RuntimeError: a fault put here by a test" in output
    assert str(kept) in output and "snakemake.log" in output and AGAIN in output
    done = stamps(results)
    assert NOTEBOOK not in done and len(done) > 2, "other jobs go on"
    assert kept.exists() and not faults.not_whole(results)

    again = faults.call(results, *PART)
    assert again.returncode == 0, again.stdout
    assert stamps(results).items() >= done.items(), "what was done was done again"
    assert not kept.exists()


def in_a_namespace(results, script):
    """Run a shell script that may mount over the results folder, seen by itself only."""
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this system allows no mounts in a namespace (unshare -rm)")
    shell = ["sh", "-c", f'set -e; RESULTS="$1"; shift; {script}', "sh", str(results)]
    return faults.run([unshare, "-rm", *shell, *faults.COMMAND, *PART], results)


@pytest.mark.long
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(part):
    results, _ = part
    before = contents(results)
    script = """
        mount --bind "$RESULTS" "$RESULTS"; mount -o remount,ro,bind "$RESULTS"
        set +e; "$@"; echo "status $?"
    """
    done = in_a_namespace(results, script)
    assert "status 1" in done.stdout and "Traceback" not in done.stderr
    assert "Read-only file system" in done.stderr and "RESULTS_DIR" in done.stderr
    assert contents(results) == before


@pytest.mark.long
def test_a_disk_that_fills_up_costs_nothing_that_is_done(part, tmp_path):
    """Nothing begins without room; a disk that fills up is named; with room all is completed."""
    undisturbed, _ = part
    results = tmp_path / "disk"
    kept = tmp_path / "kept"
    results.mkdir()
    kept.mkdir()
    script = f"""
        mount -t tmpfs -o size=1m none "$RESULTS"; set +e
        "$@"; echo "small $?"
        mount -o remount,size=400m "$RESULTS"; "$@" & call=$!
        until ls "$RESULTS"/smoke/runs/*/model.safetensors; do sleep 0.2; done >/dev/null 2>&1
        cat /dev/zero 2>/dev/null >"$RESULTS/filled by somebody"
        wait $call; echo "full $?"
        rm "$RESULTS/filled by somebody"; "$@"; echo "whole $?"
        cp -r "$RESULTS/smoke" "{kept}/smoke"
    """
    done = in_a_namespace(results, script)
    output = done.stdout + done.stderr
    assert "small 1" in output and "free space" in output and "Traceback" not in output
    assert "full 1" in output and "is full" in output
    assert "whole 0" in output, output
    assert not faults.not_whole(kept) and not faults.different_results(undisturbed, kept)
