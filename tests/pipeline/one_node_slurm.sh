#!/usr/bin/env bash
# A Slurm cluster of one node, this machine, for testing: munge, slurmctld and slurmd as the calling user, without accounting.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin # where Debian keeps daemons

usage() {
    cat <<'TEXT'
Usage: tests/pipeline/one_node_slurm.sh start FOLDER [GPUS]   start a cluster whose files all lie in FOLDER; it declares GPUS GPUs (default 0)
       tests/pipeline/one_node_slurm.sh stop FOLDER           cancel its jobs and end its daemons

To use it, put its commands first on the PATH:  PATH=FOLDER/bin:$PATH make reproduce PROFILE=smoke EXECUTOR=slurm
The GPUs are numbers to count with, so that requests can be tested without one.
Needs the Debian packages slurmctld, slurmd, slurm-client and munge; without them start ends with status 3.
TEXT
}

fail() {
    echo "$1" >&2
    exit "${2:-1}"
}

# The last lines of every log, because the reason is in one of them.
show_logs() { tail -n 5 "$folder"/*.log >&2; }

start() {
    local missing=() command gpus=$1 port=$((20000 + RANDOM % 10000 / 2 * 2)) user node name i
    for command in munged slurmctld slurmd sbatch sinfo; do command -v "$command" >/dev/null || missing+=("$command"); done
    test ${#missing[@]} = 0 || fail "Not found: ${missing[*]}. On Debian: apt-get install slurmctld slurmd slurm-client munge" 3
    [[ $gpus =~ ^[0-9]+$ ]] || fail "GPUS is '$gpus'; it must be a whole number, 0 or more."
    test ! -e "$folder/slurm.conf" || fail "$folder already holds a cluster; stop it, or take another folder."
    mkdir -p "$folder/bin" "$folder/state" "$folder/spool"
    # More memory than this machine may have, since the last attempt at a job that fails asks for four times as much as it needs.
    user=$(id -un) name=$(hostname -s) node=$(slurmd -C | sed -n 's/RealMemory=[0-9]*/RealMemory=32000/; s/^NodeName=[^ ]* //p')

    # Without cgroups, which a container may not change; on the loopback address only; finished jobs stay listed for a day.
    cat >"$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$name(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MinJobAge=86400
MessageTimeout=30
ReturnToService=2
GresTypes=gpu
MpiDefault=none
NodeName=$name NodeAddr=127.0.0.1 $node Gres=gpu:$gpus State=UNKNOWN
PartitionName=main Nodes=$name Default=YES MaxTime=INFINITE State=UP
CONF
    # Slurm wants a file for every GPU and does not open it.
    for ((i = 0; i < gpus; i++)); do
        touch "$folder/gpu$i"
        echo "Name=gpu File=$folder/gpu$i"
    done >"$folder/gres.conf"

    # Commands that know this slurm.conf without SLURM_CONF: Snakemake drops every SLURM_ variable before its srun.
    for command in sbatch srun scancel scontrol sinfo squeue sacct sacctmgr sshare; do
        printf '#!/bin/sh\nSLURM_CONF=%q exec %q "$@"\n' "$folder/slurm.conf" "$(command -v $command)" >"$folder/bin/$command"
        chmod +x "$folder/bin/$command"
    done

    (umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munge.seed" 2>>"$folder/start.log" || { show_logs; fail "munged did not start."; }
    slurmctld -f "$folder/slurm.conf" 2>>"$folder/start.log" || { show_logs; fail "slurmctld did not start."; }
    slurmd -f "$folder/slurm.conf" 2>>"$folder/start.log" || { show_logs; fail "slurmd did not start."; }
    SECONDS=0
    while ((SECONDS < 60)) && kill -0 "$(cat "$folder/slurmctld.pid")" 2>/dev/null; do
        test "$(timeout 5 "$folder/bin/sinfo" --noheader --format=%T 2>/dev/null)" != idle || { echo "One idle node. PATH=$folder/bin:\$PATH"; return; }
        sleep 1
    done
    show_logs
    fail "The node did not become idle: $(timeout 5 "$folder/bin/sinfo" --noheader --format='%T, %E' 2>&1)"
}

stop() {
    local daemon pid
    test -e "$folder/slurm.conf" || fail "$folder holds no cluster."
    timeout 5 "$folder/bin/scancel" --full --user="$(id -un)" || true
    for _ in {1..20}; do
        test -n "$(timeout 5 "$folder/bin/squeue" --noheader 2>/dev/null)" || break
        sleep 1
    done
    for daemon in slurmd slurmctld munged; do
        pid=$(cat "$folder/$daemon.pid" 2>/dev/null) || continue
        kill "$pid" 2>/dev/null || continue
        for _ in {1..20}; do kill -0 "$pid" 2>/dev/null && sleep 0.5 || break; done
    done
    rm -f "$folder/slurm.conf"
}

case "${1:-}:$#" in
    start:2 | start:3) mkdir -p "$2" && folder=$(cd "$2" && pwd) && start "${3:-0}" ;;
    stop:2) folder=$(cd "$2" && pwd) && stop ;;
    *) usage && exit 2 ;;
esac
