"""EXECUTOR=slurm on a real Slurm of one node, this machine, started by one_node_slurm.sh."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib.pipeline import jobs
from lib.runs import store

pytestmark = pytest.mark.long
SCRIPT = Path(__file__).with_name("one_node_slurm.sh")
NO_SLURM = 3  # exit status of the script
PAPER = "vje"  # Slurm is asked once a minute how its jobs are: all papers would take long


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The PATH with the commands of a cluster that has one GPU to count with."""
    folder = tmp_path_factory.mktemp("slurm")
    try:
        started = subprocess.run([SCRIPT, "start", folder, "1"], capture_output=True, text=True)
        if started.returncode == NO_SLURM:
            pytest.skip(started.stderr.strip())
        assert started.returncode == 0, started.stderr
        yield f"{folder / 'bin'}:{os.environ['PATH']}"
    finally:
        subprocess.run([SCRIPT, "stop", folder], capture_output=True)


def reproduce(path):
    """make reproduce PROFILE=smoke PAPER=vje EXECUTOR=slurm GPUS=1."""
    command = [sys.executable, "-m", "lib", "reproduce", "--profile", "smoke", "--paper", PAPER]
    return subprocess.run(
        [*command, "--executor", "slurm", "--gpus", "1"],
        cwd=store.ROOT,
        env=os.environ | {"PATH": path, "RESULTS_DIR": str(store.RESULTS)},
        capture_output=True,
        text=True,
        timeout=1200,
    )


def submitted(path):
    """What Slurm remembers of all its jobs: (state, requested GPUs, memory)."""
    command = ["squeue", "--states=all", "--noheader", "--sort=i"]
    command += ["--Format=State:|,tres-per-job:|,MinMemory:|"]
    environment = os.environ | {"PATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [tuple(line.strip("|").split("|")) for line in done.stdout.splitlines()]


def test_a_failed_job_is_named_then_continued_then_there_is_nothing_to_do(cluster):
    blocked = store.results_dir("smoke") / "notebooks" / "10_pretraining--all.ipynb"
    blocked.mkdir(parents=True)
    failed = reproduce(cluster)
    assert failed.returncode == 1
    assert "10_pretraining--all failed: " in failed.stdout, failed.stdout
    failures = [job for job in submitted(cluster) if job[0] != "COMPLETED"]
    memory = [job[2] for job in failures]
    assert memory == ["6000M", "12000M", "24000M"], "each attempt has twice the memory"

    blocked.rmdir()
    done = reproduce(cluster)
    assert done.returncode == 0, done.stdout
    listed = jobs.listed_jobs("smoke", PAPER)
    assert all(jobs.stamp(job, listed).exists() for job in listed.values())
    after = submitted(cluster)
    expected = []
    for job in listed.values():
        on_gpu = job.notebook.startswith(("10", "11"))
        gpus = "gres:gpu:1" if on_gpu else "N/A"
        expected.append(("COMPLETED", gpus, "6000M"))
    assert sorted(after) == sorted(failures + expected)

    again = reproduce(cluster)
    assert again.returncode == 0 and submitted(cluster) == after
