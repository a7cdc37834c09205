"""Whatever ends a reproduction, calling it again completes it: kills, a full disk, a folder that cannot be written, a kernel out of memory, an error.

The counts of the last whole run stand in tests/README.md.
"""

import os
import random
import shutil
import subprocess
import sys
import textwrap

import pandas as pd
import pytest

from lib.runs import settings
from lib.runs import store as artifacts
from tests.pipeline import faults

KILLS = 50
LONGEST = 30.0  # seconds between two kills at most: long enough for most jobs, and fifty of them take a quarter of an hour
PART = ("--paper", "vje")


def call(results, *arguments, **environment):
    command = [*faults.COMMAND, *PART, *arguments]
    return subprocess.run(
        command,
        cwd=artifacts.ROOT,
        env=faults.environment(results, **environment),
        capture_output=True,
        text=True,
        timeout=1200,
    )


def stamps(results):
    return {
        path.name.rsplit(".", 1)[0]: path.stat().st_mtime_ns
        for path in results.glob("smoke/.done/*.????????????")
    }


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """The results of a reproduction that nothing disturbed."""
    results = tmp_path_factory.mktemp("untouched")
    done = subprocess.run(
        faults.COMMAND,
        cwd=artifacts.ROOT,
        env=faults.environment(results),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return results


@pytest.mark.long
def test_every_notebook_shows_stored_results_without_weights(untouched):
    assert not faults.not_shown(untouched, [entry["name"] for entry in settings.notebooks()])


@pytest.mark.long
def test_fifty_kills_change_nothing(untouched, tmp_path):
    """Killed at fifty random moments, in as many rounds as that takes, every round ends with the numbers of an uninterrupted reproduction."""
    generator, kills, rounds = random.Random(0), 0, 0
    while kills < KILLS:
        results = tmp_path / f"round{rounds}"
        found = faults.reproduce_with_kills(
            results, *faults.random_moments(generator, KILLS - kills, LONGEST)
        )
        kills, rounds = kills + found["kills"], rounds + 1
        print(f"round {rounds}: {found['kills']} kills, {kills} in all", flush=True)
        assert found["done"].returncode == 0, found["done"].stdout + found["done"].stderr
        assert not found["broken"] and not found["rewritten"], (found["broken"], found["rewritten"])
        assert found["finished_before"], "no run was finished before the last kill"
        assert not faults.different_results(untouched, results)
        shutil.rmtree(results)
    assert kills == KILLS


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """One part of the companion (VJE) in profile smoke, in whose jobs that import lib.evaluation.likelihood an error is raised."""
    results, fault = tmp_path_factory.mktemp("part") / "results", tmp_path_factory.mktemp("fault")
    (fault / "sitecustomize.py").write_text(
        textwrap.dedent("""
            import sys

            class Fault:
                def find_spec(self, name, path=None, target=None):
                    if name == "lib.evaluation.likelihood":
                        raise RuntimeError("a fault put here by a test")

            sys.meta_path.insert(0, Fault())
        """)
    )
    path = os.pathsep.join(filter(None, [str(fault), os.environ.get("PYTHONPATH")]))
    return results, call(results, PYTHONPATH=path)


@pytest.mark.long
def test_a_worker_that_raises_stops_no_other(part):
    results, failed = part
    said = failed.stdout + failed.stderr
    assert failed.returncode != 0 and "Traceback" not in said
    assert (
        "60_vje_likelihood failed: RuntimeError: a fault put here by a test" in said
        and "failed/60_vje_likelihood.ipynb" in said
    )
    assert "snakemake.log" in said and "call the same command again" in said
    done = stamps(results)
    assert "60_vje_likelihood" not in done and len(done) > 2, "other jobs go on"
    assert (
        results / "smoke" / "failed" / "60_vje_likelihood.ipynb"
    ).exists() and not faults.not_whole(results)

    again = call(results)
    assert again.returncode == 0, again.stdout
    assert stamps(results).items() >= done.items(), "what was done was done again"
    assert not list((results / "smoke" / "failed").iterdir()), (
        "the notebook that failed was kept beside the one that did not"
    )


@pytest.mark.long
def test_a_kernel_that_dies_is_named(part):
    results, _ = part
    for stamp in results.glob("smoke/.done/60_vje_likelihood.????????????"):
        stamp.unlink()
    before = {path: path.read_bytes() for path in results.glob("smoke/metrics/*.csv")}
    command = [*faults.COMMAND, *PART]
    process = subprocess.Popen(
        command,
        cwd=artifacts.ROOT,
        env=faults.environment(results),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    faults.kernel_of(process, "60_vje_likelihood").kill()
    said = process.communicate()[0]
    assert process.returncode != 0 and "Traceback" not in said
    assert (
        "60_vje_likelihood failed: its kernel was killed, as the system does when memory runs out" in said
        and "JOBS=1" in said
    )
    assert "snakemake.log" in said and "call the same command again" in said
    assert {path: path.read_bytes() for path in before} == before
    assert call(results).returncode == 0


def in_a_namespace(results, script: str):
    """Run a shell script that may mount over the results folder, seen by itself alone; skip where the system does not let it."""
    if (
        not shutil.which("unshare")
        or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode
    ):
        pytest.skip("this system lets nobody mount in a namespace of his own (unshare -rm)")
    command = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        f'set -e; RESULTS="$1"; shift; {script}',
        "sh",
        str(results),
        *faults.COMMAND,
        *PART,
    ]
    return subprocess.run(
        command,
        cwd=artifacts.ROOT,
        env=faults.environment(results),
        capture_output=True,
        text=True,
        timeout=1200,
    )


@pytest.mark.long
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(part):
    results, _ = part
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    done = in_a_namespace(
        results,
        'mount --bind "$RESULTS" "$RESULTS"; mount -o remount,ro,bind "$RESULTS"; set +e; "$@"; echo "status $?"',
    )
    assert "status 1" in done.stdout and "Traceback" not in done.stderr
    assert (
        "cannot be written: Read-only file system" in done.stderr and "RESULTS_DIR" in done.stderr
    )
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before


@pytest.mark.long
def test_a_disk_that_fills_up_costs_nothing_that_is_done(part, tmp_path):
    """Without room nothing is begun; when somebody fills the disk under way the call says so; with room again the next call completes it."""
    untouched, _ = part
    results, kept = tmp_path / "disk", tmp_path / "kept"
    results.mkdir()
    kept.mkdir()
    done = in_a_namespace(
        results,
        f"""
        mount -t tmpfs -o size=1m none "$RESULTS"; set +e
        "$@"; echo "small $?"
        mount -o remount,size=400m "$RESULTS"; "$@" & call=$!
        until ls "$RESULTS"/smoke/runs/*/model.safetensors; do sleep 0.2; done >/dev/null 2>&1
        cat /dev/zero 2>/dev/null >"$RESULTS/filled by somebody"
        wait $call; echo "full $?"
        rm "$RESULTS/filled by somebody"; "$@"; echo "whole $?"; cp -r "$RESULTS/smoke" "{kept}/smoke"
        """,
    )
    said = done.stdout + done.stderr
    assert "small 1" in said and "MB of free space left" in said and "Traceback" not in said
    assert "full 1" in said and "is full. Free space" in said
    assert "whole 0" in said, said
    assert not faults.not_whole(kept) and not faults.different_results(untouched, kept)


def test_files_that_are_not_whole_are_found(tmp_path):
    artifacts.write_csv(tmp_path / "whole.csv", pd.DataFrame({"a": [1]}))
    artifacts.write_json(tmp_path / "whole.json", {})
    assert not faults.not_whole(tmp_path)
    (tmp_path / "cut.csv").write_text("a,b\n1")
    (tmp_path / "cut.json").write_text("{")
    (tmp_path / "cut.npz").write_bytes(b"PK")
    (tmp_path / "cut.html").write_text("<html>")
    assert [name.split(":")[0] for name in sorted(faults.not_whole(tmp_path))] == [
        "cut.csv",
        "cut.html",
        "cut.json",
        "cut.npz",
    ]


def test_a_killed_family_leaves_nobody(tmp_path):
    child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", child])
    while len(faults.family(process.pid)) < 2:
        pass
    members = faults.family(process.pid)
    faults.kill_all(process)
    assert not any(map(faults.is_alive, members))
