"""EXECUTOR=slurm on a real Slurm: one node, this machine, started by tests/pipeline/one_node_slurm.sh."""

import os
import subprocess
import sys

import pytest

from lib.pipeline import jobs as reproduction
from lib.runs import store as artifacts

pytestmark = pytest.mark.long
SCRIPT = artifacts.ROOT / "tests" / "pipeline" / "one_node_slurm.sh"
PAPER = "vje"  # jobs of every kind; Slurm is asked how they are once a minute, and all the companion's would take a quarter of an hour


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The PATH with the commands of a cluster that has one GPU to count with."""
    folder = tmp_path_factory.mktemp("slurm")
    try:
        started = subprocess.run([SCRIPT, "start", folder, "1"], capture_output=True, text=True)
        if started.returncode == 3:
            pytest.skip(started.stderr.strip())
        assert started.returncode == 0, started.stderr
        yield f"{folder / 'bin'}:{os.environ['PATH']}"
    finally:
        subprocess.run([SCRIPT, "stop", folder], capture_output=True)


def reproduce(path, gpus, **variables):
    """make reproduce PROFILE=smoke PAPER=vje EXECUTOR=slurm GPUS=<gpus>, with results where the test expects them."""
    command = [
        sys.executable,
        "-m",
        "lib.pipeline.jobs",
        "--profile",
        "smoke",
        "--paper",
        PAPER,
        "--executor",
        "slurm",
        "--gpus",
        str(gpus),
    ]
    environment = os.environ | {"PATH": path, "RESULTS_DIR": str(artifacts.RESULTS)} | variables
    return subprocess.run(
        command, cwd=artifacts.ROOT, env=environment, capture_output=True, text=True, timeout=1200
    )


def submitted(path):
    """What Slurm itself remembers of all its jobs: (rule, state, requested GPUs, memory)."""
    command = [
        "squeue",
        "--states=all",
        "--noheader",
        "--sort=i",
        "--Format=Comment:|,State:|,tres-per-job:|,MinMemory:|",
    ]
    done = subprocess.run(
        command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True
    )
    return [tuple(line.strip("|").split("|")) for line in done.stdout.splitlines()]


def test_reproduce_on_slurm_fails_with_a_name_then_continues_then_has_nothing_to_do(cluster):
    blocked = artifacts.results_dir("smoke") / "notebooks" / "10_pretraining--all.ipynb"
    blocked.mkdir(parents=True)
    failed = reproduce(cluster, gpus=1)
    assert failed.returncode == 1 and "10_pretraining--all failed: " in failed.stdout, failed.stdout
    failures = [
        ("rule_10_pretraining__all", "FAILED", "gres:gpu:1", memory)
        for memory in ("6000M", "12000M", "24000M")
    ]
    assert [job for job in submitted(cluster) if job[1] != "COMPLETED"] == failures

    blocked.rmdir()
    done = reproduce(cluster, gpus=1)
    assert done.returncode == 0, done.stdout
    listed = {job.name: job for job in reproduction.jobs("smoke", PAPER)}
    assert all(reproduction.stamp(job, listed).exists() for job in listed.values())
    ran = submitted(cluster)
    expected = {
        (
            f"rule_{reproduction.rule_name(job)}",
            "COMPLETED",
            "gres:gpu:1" if job.notebook in reproduction.ON_GPU else "N/A",
            "6000M",
        )
        for job in listed.values()
    }
    assert sorted(ran) == sorted([*failures, *expected])

    again = reproduce(cluster, gpus=1)
    assert again.returncode == 0 and f"{len(listed)} already done" in again.stdout
    assert submitted(cluster) == ran


@pytest.mark.parametrize(
    "gpus, partition, message",
    [
        (2, "main", "Requested node configuration is not available"),
        (0, "other", "Invalid partition name specified"),
    ],
)
def test_what_slurm_refuses_is_reported(cluster, tmp_path, gpus, partition, message):
    (tmp_path / "config.yaml").write_text(f"default-resources:\n  - slurm_partition={partition}\n")
    refused = reproduce(cluster, gpus, SNAKEMAKE_PROFILE=str(tmp_path))
    assert (
        refused.returncode == 1
        and "Not done: 10_pretraining--all" in refused.stdout
        and message in refused.stdout
    ), refused.stdout
