#!/usr/bin/env bash
# A real Slurm on this host alone, for tests and for trying cmd_backend=slurm out: NODES nodes, all of them this host.
#
#   one_host_slurm.sh start DIR [NODES]    prints SLURM_CONF=..., which sbatch and the others need in the environment
#   one_host_slurm.sh stop DIR
#
# Needs root and Debian's slurm-wlm and munge. Everything it writes is in DIR.
set -euo pipefail

die() { echo "one_host_slurm.sh: error: $*" >&2; exit 1; }

[ $# -ge 2 ] || die "usage: one_host_slurm.sh start DIR [NODES] | stop DIR"
action="$1" nodes="${3:-1}"
mkdir -p "$2"
dir="$(cd "$2" && pwd)"

stop() {
    local pid pids
    pids="$(cat "${dir}"/*.pid 2> /dev/null || true)"  # now: a daemon removes its file before it ends
    for pid in ${pids}; do kill "${pid}" 2> /dev/null || true; done
    for pid in ${pids}; do
        for _ in $(seq 50); do kill -0 "${pid}" 2> /dev/null || break; sleep 0.1; done
        kill -KILL "${pid}" 2> /dev/null || true
    done
    rm -f "${dir}"/*.pid
}

start() {
    local program host conf="${dir}/slurm.conf" ports memory node
    [ "$(id -u)" -eq 0 ] || die "the daemons have to be started by root"
    for program in munged slurmctld slurmd; do
        command -v "${program}" > /dev/null || die "no ${program}: apt-get install slurm-wlm munge"
    done
    host="$(hostname -s)"
    memory="$(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo)"
    # shellcheck disable=SC2207  # numbers
    ports=($(python3 - "${nodes}" <<'PORTS'
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]) + 1)]
for one in sockets:
    one.bind(("", 0))
print(*[one.getsockname()[1] for one in sockets])
PORTS
    ))
    chmod 755 "${dir}"
    head -c 128 /dev/urandom > "${dir}/munge.key"
    chmod 400 "${dir}/munge.key"
    munged --force --socket "${dir}/munge.socket" --key-file "${dir}/munge.key" --pid-file "${dir}/munged.pid" \
        --log-file "${dir}/munged.log" --seed-file "${dir}/munge.seed" 2> "${dir}/munged.err" \
        || die "munged does not start: $(tail -n 1 "${dir}/munged.err")"

    cat > "${conf}" <<CONF
ClusterName=one_host
SlurmctldHost=${host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=${dir}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,requeue_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
MinJobAge=300
StateSaveLocation=${dir}/state
SlurmctldPort=${ports[0]}
SlurmctldPidFile=${dir}/slurmctld.pid
SlurmctldLogFile=${dir}/slurmctld.log
SlurmdSpoolDir=${dir}/spool.%n
SlurmdPidFile=${dir}/slurmd.%n.pid
SlurmdLogFile=${dir}/slurmd.%n.log
CONF
    for node in $(seq "${nodes}"); do
        echo "NodeName=n${node} NodeHostname=${host} NodeAddr=127.0.0.1 Port=${ports[${node}]}" \
            "CPUs=4 RealMemory=${memory} State=UNKNOWN" >> "${conf}"
    done
    cat >> "${conf}" <<CONF
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
CONF
    mkdir -p "${dir}/state"
    slurmctld -f "${conf}"
    for node in $(seq "${nodes}"); do slurmd -f "${conf}" -N "n${node}"; done
    for _ in $(seq 300); do
        if [ "$(SLURM_CONF="${conf}" sinfo -h -N -p main -t idle -o %N 2>/dev/null | wc -l)" = "${nodes}" ]; then
            echo "SLURM_CONF=${conf}"
            return
        fi
        sleep 0.1
    done
    stop
    die "no idle node after 30 s: $(grep -hE 'error|fatal' "${dir}"/slurm*.log | tail -n 1)"
}

case "${action}" in
start) start ;;
stop) stop ;;
*) die "'${action}' is neither start nor stop" ;;
esac
