# The DAG of the companion. One job is one papermill run of one notebook (lib/pipeline/jobs.py).
# The output of a job is its stamp, whose name holds the hash of all that the job depends on.
# Checkpoints are not outputs, because Snakemake deletes the outputs of a failed job.
# `make reproduce` runs it and passes profile, paper and GPUs.

import sys

from lib.pipeline import jobs
from lib.runs import settings

PROFILE = config.get("profile", "quick")
PAPER = config.get("paper", "all")
GPUS = int(config.get("gpus", 0))
MEM_MB = int(config.get("mem_mb", 6000))
LISTED = jobs.listed_jobs(PROFILE, PAPER)
DONE = jobs.stamp_folder(PROFILE)
TRAINING = settings.pipeline()["training"]
EVALUATION = settings.pipeline()["evaluation"]


def stamp_of(name):
    return str(jobs.stamp(LISTED[name], LISTED))


def stamps_needed(wildcards):
    return [stamp_of(name) for name in LISTED[wildcards.name].needs]


def memory(wildcards, attempt):
    """Doubled each time that the job is submitted again."""
    return MEM_MB * 2 ** (attempt - 1)


def gpus_of(wildcards):
    """The evaluation suite fine-tunes networks; other notebooks draw."""
    return GPUS if LISTED[wildcards.name].notebook == EVALUATION else 0


rule all:
    input:
        [stamp_of(name) for name in LISTED],


# A training. It starts before the notebooks that need none, as most notebooks wait for it.
rule training:
    output:
        f"{DONE}/{{name}}.{{digest}}",
    wildcard_constraints:
        name=TRAINING + "--[^/]+",
        digest="[0-9a-f]{12}",
    priority: 1
    threads: 1
    resources:
        mem_mb=memory,
        gpu=GPUS,
    shell:
        "{sys.executable:q} -m lib job {wildcards.name:q} --stamp {output:q} --profile {PROFILE:q} --paper {PAPER:q} --threads {threads:q}"


# Any other notebook.
rule notebook:
    input:
        stamps_needed,
    output:
        f"{DONE}/{{name}}.{{digest}}",
    wildcard_constraints:
        name="(?!" + TRAINING + ")[^/]+",
        digest="[0-9a-f]{12}",
    threads: 1
    resources:
        mem_mb=memory,
        gpu=gpus_of,
    shell:
        "{sys.executable:q} -m lib job {wildcards.name:q} --stamp {output:q} --profile {PROFILE:q} --paper {PAPER:q} --threads {threads:q}"
