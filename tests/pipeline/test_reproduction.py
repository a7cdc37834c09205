"""Jobs, stamps and the checks of parameters before anything runs."""

import asyncio
import errno
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pandas as pd
import psutil
import pytest

from lib.evaluation import measure as protocol
from lib.pipeline import jobs as reproduction
from lib.pipeline import kernels
from lib.runs import settings
from lib.runs import store as artifacts

PROFILES = ["smoke", "quick", "standard"]


@pytest.mark.parametrize("profile", PROFILES)
def test_jobs_are_unique_known_and_ordered(profile, monkeypatch):
    monkeypatch.setattr(settings, "absent_sets", lambda profile: [])
    listed = reproduction.jobs(profile)
    names = [job.name for job in listed]
    assert len(set(names)) == len(names) > 3
    for position, job in enumerate(listed):
        assert set(job.needs) <= set(names[:position]), f"{job.name} needs a job that comes later"
        reproduction.check_parameters(job.notebook, job.parameters)
    assert sorted(trained_by(listed)) == sorted(
        settings.run_name(run) for run in settings.runs(profile) + settings.tuning_runs(profile)
    )


def trained_by(listed):
    return " ".join(
        job.parameters["runs"] for job in listed if job.notebook == "10_pretraining"
    ).split()


def test_runs_on_sets_that_nobody_can_fetch_are_left_out_where_these_are_not(monkeypatch, tmp_path):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    own = settings.experiments("standard")["own_sets"]
    assert settings.absent_sets("standard") == own and settings.absent_sets("quick") == []
    every = {
        settings.run_name(run): run["dataset"]
        for run in settings.runs("standard") + settings.tuning_runs("standard")
    }
    assert set(own) < set(every.values())
    assert sorted(trained_by(reproduction.jobs("standard"))) == sorted(
        name for name, dataset in every.items() if dataset not in own
    )
    (tmp_path / own[0]).mkdir()
    assert sorted(trained_by(reproduction.jobs("standard"))) == sorted(
        name for name, dataset in every.items() if dataset not in own[1:]
    )


def test_paper_chooses_jobs():
    assert {job.name for job in reproduction.jobs("quick", "vs1")} <= {
        job.name for job in reproduction.jobs("quick", "all")
    }
    assert not {job.name for job in reproduction.jobs("quick", "simvae")} & {
        "01_ssl_as_inference",
        "30_kappa_distributions",
    }
    vje = {job.name for job in reproduction.jobs("quick", "vje")}
    assert {"10_pretraining--all-apart", "60_vje_likelihood", "61_vje_ablations"} <= vje
    assert not vje & {"50_prosmin_calibration_and_shift", "33_kappa_closed_form"}
    with pytest.raises(ValueError, match="Unknown paper 'vs3'"):
        reproduction.jobs("quick", "vs3")


def test_stamps_follow_parameters_sources_and_needs(monkeypatch):
    listed = {job.name: job for job in reproduction.jobs("smoke")}
    stamps = {name: reproduction.stamp(job, listed).name for name, job in listed.items()}
    first = next(iter(listed))
    changed = listed | {
        first: listed[first]._replace(parameters={**listed[first].parameters, "seed": 7})
    }
    after = {name: reproduction.stamp(job, changed).name for name, job in changed.items()}
    assert after[first] != stamps[first]
    dependent = [name for name, job in listed.items() if first in job.needs]
    assert dependent and all(after[name] != stamps[name] for name in dependent)

    original = reproduction.source_hash
    monkeypatch.setattr(
        reproduction,
        "source_hash",
        lambda notebook: original(notebook) + ("x" if notebook.startswith("32") else ""),
    )
    edited = {name: reproduction.stamp(job, listed).name for name, job in listed.items()}
    assert {name for name in listed if edited[name] != stamps[name]} == {
        "32_kappa_as_confidence",
        "00_start_here",
        "90_claims_ledger",
    }


def test_a_rule_of_the_ledger_reruns_what_judges_by_it_and_nothing_else(monkeypatch):
    names = ("10_pretraining", "33_kappa_closed_form", "90_claims_ledger")
    hashed, original = artifacts.sha256, {name: reproduction.source_hash(name) for name in names}
    expected = {
        "claims.toml": {"90_claims_ledger"},
        "papers.toml": set(),
        "profiles.toml": set(original),
        "style.mplstyle": set(original),
    }
    for edited, rerun in expected.items():
        reproduction.source_hash.cache_clear()
        monkeypatch.setattr(
            artifacts,
            "sha256",
            lambda of, edited=edited: "edited" if getattr(of, "name", "") == edited else hashed(of),
        )
        assert {
            name for name, digest in original.items() if reproduction.source_hash(name) != digest
        } == rerun
    reproduction.source_hash.cache_clear()


def test_imported_modules_are_followed():
    found = {path.stem for path in artifacts.source_files("from lib import losses; from lib.pipeline import jobs")}
    assert found >= {"losses", "distributions"} and "plotting" not in found


def test_the_hash_of_code_follows_its_imports_and_no_comment(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "ROOT", tmp_path)

    def hashed(**modules: str) -> str:
        artifacts.code_hash.cache_clear()
        for name, source in modules.items():
            artifacts.write_text(tmp_path / "lib" / f"{name}.py", source)
        return artifacts.code_hash("from lib import first")

    original = hashed(first="from lib import second\nx = 1\n", second="y = 1\n", third="z = 1\n")
    assert (
        hashed(first="""'Said of it.'\nfrom lib import second  # why\nx = 1\n""", third="z = 2\n")
        == original
    )
    assert hashed(second="y = 2\n") != original
    artifacts.code_hash.cache_clear()


def test_the_hash_of_code_is_of_what_was_imported_not_of_an_edit_since(monkeypatch):
    asked, read = "from lib import losses", Path.read_text
    artifacts.code_hash.cache_clear()
    imported = artifacts.code_hash(asked)
    artifacts.code_hash.cache_clear()
    monkeypatch.setattr(Path, "read_text", lambda path: read(path) + "edited = 1\n")
    assert artifacts.code_hash(asked) == imported


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"methd": "simsiam"}, "no parameter 'methd'"),
        ({"seed": "one"}, "must be a int"),
        ({"seed": True}, "must be a int"),
        ({"train_missing": 1}, "must be a bool"),
        ({"profile": "quik"}, "Unknown profile 'quik'"),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        reproduction.check_parameters("10_pretraining", parameters)


def test_begin_refuses_what_papermill_only_warns_about():
    reproduction.begin(
        "10_pretraining",
        {
            "profile": "smoke",
            "seed": 1,
            "NOTEBOOK": "10_pretraining",
            "_private": 3,
            "pd": object(),
        },
    )
    with pytest.raises(ValueError, match="no parameter 'sed'"):
        reproduction.begin("10_pretraining", {"profile": "smoke", "sed": 1})


def test_begin_may_be_called_again_and_still_looks_at_the_parameters():
    names = {"profile": "smoke", "seed": 1}
    reproduction.begin("10_pretraining", names)
    reproduction.begin("10_pretraining", names | {"text": "of the notebook's own"})
    with pytest.raises(ValueError, match="must be a int"):
        reproduction.begin("10_pretraining", names | {"text": "", "seed": "one"})


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--notebook", "10", "--params", "sed=1"], "no parameter 'sed'"),
        (
            ["--notebook", "10", "--params", "profile=smoke"],
            "Give the profile once, as PROFILE=smoke",
        ),
        (["--notebook", "11"], "No notebook '11'"),
        (["--notebook", "10", "--params", "seed"], "not name=value"),
        (["--profile", "quik"], "Unknown profile"),
        (["--job", "nothing"], "has no job 'nothing'"),
        (["--executor", "slurm", "--gpus", "one"], "GPUS=one is not a number of GPUs"),
        (["--executor", "slurm", "--gpus", "-1"], "GPUS=-1 is not a number of GPUs"),
        (["--gpus", "1"], "add EXECUTOR=slurm"),
    ],
)
def test_command_line_says_what_is_wrong(arguments, message):
    done = subprocess.run(
        [sys.executable, "-m", "lib.pipeline.jobs", *arguments],
        cwd=artifacts.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_whatever_ends_a_job_the_job_is_named(monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reproduction, "run_job", full)
    monkeypatch.setattr(
        sys, "argv", ["reproduction", "--profile", "smoke", "--job", "10_pretraining--all"]
    )
    assert reproduction.main() == 1
    assert (
        "10_pretraining--all failed: OSError: [Errno 28] No space left on device. "
        in capsys.readouterr().err
    )


def test_a_held_lock_is_an_error_or_awaited(tmp_path):
    with artifacts.exclusive(tmp_path / "lock"), pytest.raises(RuntimeError, match="busy here"):
        with artifacts.exclusive(tmp_path / "lock", "busy here"):
            pass
    with artifacts.exclusive(tmp_path / "lock", "busy here"):
        pass


def test_a_job_writes_the_stamp_it_was_asked_for(tmp_path, monkeypatch):
    """Sources edited while the DAG runs must not leave Snakemake waiting for a stamp that never comes."""
    executed = []
    monkeypatch.setattr(reproduction, "execute", executed.append)
    job, asked = (
        reproduction.jobs("smoke")[0],
        tmp_path / f"{reproduction.jobs('smoke')[0].name}.0123456789ab",
    )
    for _ in range(2):
        reproduction.run_job("smoke", "all", job.name, str(asked))
    assert asked.exists() and executed == [job]


def test_a_kernel_is_reached_through_no_port_that_could_be_taken():
    async def sockets(folder):
        manager = kernels.JobKernel.for_job(Path(folder))(kernel_name="python3")
        await manager.start_kernel()
        kernel, client = psutil.Process(manager.provisioner.pid), manager.client()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=reproduction.START_SECONDS)
            return {connection.laddr for connection in kernel.net_connections("unix")}
        finally:
            client.stop_channels()
            await manager.shutdown_kernel(now=True)

    with tempfile.TemporaryDirectory(
        dir="/tmp"
    ) as folder:  # as execute has it: the path of a socket must be short
        assert asyncio.run(sockets(folder)) >= {
            f"{folder}/kernel-ipc-{number}" for number in range(1, 6)
        }
        assert os.listdir(folder) == ["stderr"]


def test_slurm_without_sbatch_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="EXECUTOR=slurm found no sbatch"):
        reproduction.reproduce("smoke", "all", "slurm")
    assert not artifacts.RESULTS.exists()


@pytest.mark.parametrize("status, asked", [(0, []), (1, ["--slurm-status-command", "squeue"])])
def test_without_accounting_squeue_is_asked(tmp_path, monkeypatch, status, asked):
    for name in ("sbatch", "sacct"):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {status}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    options = reproduction.executor_options("slurm", 2, 1)
    assert (
        options[:4] == ["--executor", "slurm", "--jobs", "2"]
        and options[options.index("10") + 1 :] == asked
    )
    assert options[options.index("--retries") + 1] == "2"  # what README promises


WATCHED = """
import sys
from pathlib import Path
from lib.pipeline import jobs as reproduction
command = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
with open(sys.argv[1], "w") as log:
    print(reproduction._run_watched(command, log, {}, Path(sys.argv[1]).parent))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_being_asked_to_end_ends_what_was_started_also_in_the_background(tmp_path, number):
    """A shell that starts a command in the background has it ignore SIGINT."""
    heard = (
        signal.default_int_handler if number == signal.SIGINT else signal.SIG_IGN
    )  # whoever started these tests may have had them ignore it
    as_started = {
        signal.SIGINT: heard,
        signal.SIGHUP: signal.SIG_DFL,
    }  # nohup would have it ignore the latter
    asked = {
        "stdout": subprocess.PIPE,
        "text": True,
        "preexec_fn": lambda: [signal.signal(*each) for each in as_started.items()],
    }
    process = subprocess.Popen([sys.executable, "-c", WATCHED, str(tmp_path / "log")], **asked)
    while not (said := (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""):
        time.sleep(0.1)
    process.send_signal(number)
    assert (
        process.communicate()[0]
        == "Interrupted. Call the same command again to continue.\n(None, 0)\n"
    )
    assert not psutil.pid_exists(int(said))


def test_snakemake_plans_every_job(tmp_path, monkeypatch):
    """The Snakefile gives Snakemake exactly the jobs of lib.pipeline.jobs, their GPUs and commands, and the partition of a profile."""
    (tmp_path / "config.yaml").write_text("default-resources:\n  - slurm_partition=other\n")
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "-n",
        "-p",
        "--cores",
        "1",
        "--config",
        "profile=smoke",
        "paper=all",
        "gpus=2",
    ]
    results = tmp_path / 'of $HOME "and" `more`'
    environment = os.environ | {"RESULTS_DIR": str(results), "SNAKEMAKE_PROFILE": str(tmp_path)}
    done = subprocess.run(
        command, cwd=artifacts.ROOT, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    planned = dict(
        re.findall(r"^rule (\w+):\n(?: .+\n)*?    resources: (.+)", done.stdout, re.MULTILINE)
    )
    listed = reproduction.jobs("smoke")
    assert set(planned) == {"all"} | {reproduction.rule_name(job) for job in listed}
    assert set(reproduction.ON_GPU) < {job.notebook for job in listed}
    for job in listed:
        resources = planned[reproduction.rule_name(job)].split(", ")
        asked = {
            f"gpu={2 if job.notebook in reproduction.ON_GPU else 0}",
            "mem_mb=6000",
            "runtime=600",
        }
        assert asked | {"slurm_partition=other"} <= set(resources)
    calls = [
        shlex.split(line)
        for line in re.findall(r"^Shell command: (?!None$)(.+)", done.stdout, re.MULTILINE)
    ]
    monkeypatch.setattr(artifacts, "RESULTS", results)
    by_name = {job.name: job for job in listed}
    expected = [
        ["--job", name, "--stamp", str(reproduction.stamp(job, by_name))]
        for name, job in by_name.items()
    ]
    rest = ["--profile", "smoke", "--paper", "all", "--threads", "1"]
    job = [sys.executable, "-m", "lib.pipeline.jobs"]
    assert sorted(calls) == sorted([*job, *words, *rest] for words in expected)


def test_memory_of_a_process_counts_what_its_children_hold():
    held = 300 * 2**20
    child = f"import sys; held = bytearray({held}); print('ready', flush=True); sys.stdin.read()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        assert held < reproduction.memory_of(process.pid) < 2 * held
        process.stdin.close()
    assert reproduction.memory_of(process.pid) == 0


def test_sets_that_cannot_be_had_are_those_of_the_runs_of_waiting_jobs(monkeypatch):
    monkeypatch.setattr(protocol, "missing_sets", lambda runs: [run["method"] for run in runs])
    waiting = [
        reproduction.Job(
            "one",
            "10_pretraining",
            {"profile": "smoke", "runs": "simclr-digits-e1-seed0 random-digits-e0-seed0"},
        )
    ]
    assert reproduction._not_to_be_had(
        [*waiting, reproduction.Job("two", "00_start_here", {"profile": "smoke"})], "smoke"
    ) == ["simclr", "random"]


def test_the_record_is_of_one_call_the_longest(shared_results):
    def recorded(paper: str, cores: int, seconds: float, memory: int) -> dict:
        reproduction._record_run("smoke", paper, cores, seconds, memory)
        return artifacts.read_json(artifacts.results_dir("smoke") / "run.json")

    artifacts.write_json(
        artifacts.run_dir("smoke", "new") / "config.json",
        {"run": "new", "seconds": 5.0, "finished": True},
    )
    first = recorded("all", 2, 90.04, 3 * 2**30)
    assert (first["paper"], first["cores"], first["seconds"], first["peak_memory_gib"]) == (
        "all",
        2,
        90.0,
        3.0,
    )
    artifacts.write_json(
        artifacts.run_dir("smoke", "new") / "config.json",
        {"run": "new", "seconds": 6.0, "finished": True},
    )
    assert recorded("vje", 8, 20, 9 * 2**30) == first | {
        "training_seconds": first["training_seconds"] | {"new": 6.0}
    }, "no part of a shorter one"
    assert recorded("all", 1, 200, 2**30)["peak_memory_gib"] == 1.0


def test_jobs_at_once_are_what_cores_and_memory_allow(monkeypatch, tmp_path):
    monkeypatch.setattr(reproduction, "CONTAINER", tmp_path)  # none
    monkeypatch.setattr(
        reproduction.os, "sched_getaffinity", lambda _: set(range(64)), raising=False
    )
    memory = {"SC_PHYS_PAGES": 4 * 2**30 // 4096, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(reproduction.os, "sysconf", memory.__getitem__)
    assert reproduction.usable_cores() == 4 * 2**30 // reproduction.JOB_BYTES == 2
    monkeypatch.setattr(reproduction.os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert reproduction.usable_cores() == 1
    memory["SC_PHYS_PAGES"] = 1
    assert reproduction.usable_cores() == 1


@pytest.mark.parametrize(
    "cpu, memory, jobs",
    [
        ("max 100000", "max", 64),
        ("250000 100000", "max", 2),
        ("50000 100000", "max", 1),
        ("max 100000", f"{5 * 2**30}", 3),
        ("", "", 64),
    ],
)
def test_jobs_at_once_are_what_a_container_allows(cpu, memory, jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(
        reproduction.os, "sched_getaffinity", lambda _: set(range(64)), raising=False
    )
    monkeypatch.setattr(
        reproduction.os, "sysconf", {"SC_PHYS_PAGES": 2**26, "SC_PAGE_SIZE": 4096}.__getitem__
    )
    monkeypatch.setattr(reproduction, "CONTAINER", tmp_path)
    (tmp_path / "cpu.max").write_text(cpu)
    (tmp_path / "memory.max").write_text(memory)
    assert reproduction.usable_cores() == jobs


def test_an_executed_notebook_keeps_its_tables_and_no_style_of_them(tmp_path):
    table = pd.DataFrame({"method": ["simsiam", "a < b"], "value": [1.5, 2.0]})
    data = {"text/html": table._repr_html_(), "text/plain": "text"}
    cell = nbformat.v4.new_code_cell(
        "table", outputs=[nbformat.v4.new_output("display_data", data)]
    )
    notebook = nbformat.v4.new_notebook(
        cells=[cell], metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    )
    nbformat.write(notebook, path := tmp_path / "page.ipynb")
    reproduction.clean_metadata(path)
    (output,) = nbformat.read(path, as_version=4).cells[0].outputs
    assert set(output.data) == {"text/html"} and "<style" not in output.data["text/html"]
    rows = [
        list(row.itertext()) for row in ElementTree.fromstring(output.data["text/html"]).iter("tr")
    ]
    cells = [[text for text in row if text.strip()] for row in rows]
    assert cells == [["method", "value"], ["0", "simsiam", "1.5"], ["1", "a < b", "2.0"]]
