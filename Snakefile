# The DAG of the companion: one job is one papermill run of one notebook with one set of parameters (lib/pipeline/jobs.py lists them).
# A job's output is its stamp, whose name holds the hash of everything the job depends on; checkpoints are outside the outputs, because
# Snakemake deletes the outputs of a failed job. Run it with `make reproduce`, which passes the profile, the paper and the GPUs.

import sys

from lib.pipeline import jobs as reproduction

PROFILE = config.get("profile", "quick")
PAPER = config.get("paper", "all")
GPUS = int(config.get("gpus", 0))
JOBS = {job.name: job for job in reproduction.jobs(PROFILE, PAPER)}


def stamp_of(name):
    return str(reproduction.stamp(JOBS[name], JOBS))


rule all:
    input:
        [stamp_of(name) for name in JOBS],


for job in JOBS.values():

    rule:
        name:
            reproduction.rule_name(job)
        input:
            [stamp_of(name) for name in job.needs],
        output:
            stamp_of(job.name),
        threads: reproduction.THREADS
        # Most notebooks wait for all networks; those that need none fill the cores beside and after them.
        priority: int(job.notebook == reproduction.artifacts.MEASURED_BY)
        resources:
            # A cluster ends what goes beyond them, and the next attempt goes on from the checkpoint.
            mem_mb=lambda wildcards, attempt: 6000 * 2 ** (attempt - 1),
            runtime=600,
            gpu=GPUS if job.notebook in reproduction.ON_GPU else 0,
        params:
            job=job.name,
        shell:
            "{sys.executable:q} -m lib.pipeline.jobs --job {params.job:q} --stamp {output:q} --profile {PROFILE:q} --paper {PAPER:q} --threads {threads}"
