"""make reproduce: where jobs run, what Snakemake is given, and how the command ends."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time

import psutil
import pytest

from lib.pipeline import jobs, reproduce
from lib.runs import settings, store
from tests.pipeline import faults


# ------------------------------------------------------------------------- where jobs run
def test_slurm_without_sbatch_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="sbatch"):
        reproduce.reproduce("smoke", "all", "slurm")
    assert not store.RESULTS.exists()


@pytest.mark.parametrize(
    "cores, gigabytes, cpu_limit, memory_limit, at_once",
    [
        (64, 1024, "max 100000", "max", 64),
        (64, 1024, "50000 100000", "max", 1),
        (64, 1024, "max 100000", str(5 * 2**30), 3),
        (64, 4, "", "", 2),
    ],
)
def test_jobs_at_once_follow_cores_memory_and_container(
    cores, gigabytes, cpu_limit, memory_limit, at_once, tmp_path, monkeypatch
):
    physical = {"SC_PHYS_PAGES": gigabytes * 2**18, "SC_PAGE_SIZE": 2**12}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(os, "sysconf", physical.__getitem__)
    monkeypatch.setattr(reproduce, "CONTAINER", tmp_path)
    (tmp_path / "cpu.max").write_text(cpu_limit)
    (tmp_path / "memory.max").write_text(memory_limit)
    assert reproduce.most_jobs_at_once() == at_once


# ------------------------------------------------------------------------- Snakemake
def test_snakemake_plans_every_job_with_the_resources_of_the_profile(tmp_path, monkeypatch):
    """A results folder whose name is made of shell shows that every name is quoted."""
    results = tmp_path / 'of $HOME "and" `more`'
    monkeypatch.setattr(store, "RESULTS", results)
    config = tmp_path / "config.json"
    store.write_json(config, {"profile": "smoke", "paper": "all", "gpus": 2})
    command = [*reproduce.snakemake_command(config), "--dry-run", "--printshellcmds"]
    command += ["--cores", "1", "--profile", str(reproduce.CLUSTER_PROFILE)]
    environment = os.environ | {"RESULTS_DIR": str(results)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr

    listed = jobs.listed_jobs("smoke")
    wildcards = re.findall(r"wildcards: name=(.+), digest=", done.stdout)
    resources = re.findall(r"resources: (.+)", done.stdout)
    planned = dict(zip(wildcards, resources, strict=False))
    assert set(planned) == set(listed)
    pipeline = settings.pipeline()
    for name, job in listed.items():
        on_gpu = job.notebook in (pipeline["training"], pipeline["evaluation"])
        assert ("gpu=2" in planned[name]) == on_gpu
        assert {"mem_mb=6000", "runtime=600"} <= set(planned[name].split(", "))

    shell = re.findall(r"(?m)^Shell command: (?!None$)(.+)", done.stdout)
    expected = [
        [sys.executable, "-m", "lib", "job", name, "--stamp", str(jobs.stamp(job, listed))]
        + ["--profile", "smoke", "--paper", "all", "--threads", "1"]
        for name, job in listed.items()
    ]
    assert sorted(shlex.split(line) for line in shell) == sorted(expected)


# ------------------------------------------------------------------------- the end
WATCHED = """
import sys
from pathlib import Path
from lib.pipeline import reproduce
script = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
log_path = Path(sys.argv[1])
with open(log_path, "w") as log:
    status = reproduce.run_watched([sys.executable, "-c", script], log, {}, log_path.parent)
print(status)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_end_ends_what_was_started(tmp_path, number):
    """Also in the background, where a shell has a command ignore SIGINT."""

    def as_started_by_a_shell():
        ignored = signal.default_int_handler if number == signal.SIGINT else signal.SIG_IGN
        signal.signal(signal.SIGINT, ignored)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    log = tmp_path / "log"
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED, str(log)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=store.ROOT,
        preexec_fn=as_started_by_a_shell,
    )
    while not (log.exists() and log.read_text()):
        time.sleep(0.1)
    process.send_signal(number)
    output = process.communicate()[0]
    assert output.splitlines() == [reproduce.TO_CONTINUE, "None"]
    pid = re.match(r"\d+", log.read_text())[0]
    assert not psutil.pid_exists(int(pid))


def stamps(results):
    """When each job was done, by its name."""
    written = {}
    for path in results.glob("smoke/.done/*.????????????"):
        name, _, _ = path.name.rpartition(".")
        written[name] = path.stat().st_mtime_ns
    return written


@pytest.mark.long
def test_a_job_that_fails_stops_no_other_and_is_done_by_the_next_call(tmp_path):
    """A folder lies where the page of one notebook is to be written."""
    notebook = "60_vje_likelihood"
    blocked = tmp_path / "smoke" / "notebooks" / f"{notebook}.ipynb"
    blocked.mkdir(parents=True)
    failed = faults.call(tmp_path, "--paper", "vje")
    output = failed.stdout + failed.stderr
    assert failed.returncode == 1 and f"{notebook} failed: " in output, output
    done = stamps(tmp_path)
    assert notebook not in done and len(done) > 2, "other jobs go on"

    blocked.rmdir()
    again = faults.call(tmp_path, "--paper", "vje")
    assert again.returncode == 0, again.stdout
    assert stamps(tmp_path).items() >= done.items(), "what was done was done again"
    assert notebook in stamps(tmp_path)
