#!/bin/bash
# A real Slurm of one node, or of two, on this machine, for tests: slurmctld, slurmd and munged, no accounting. As root.
#
#   scripts/slurm/test_cluster.sh install          # Debian's slurm-wlm and munge
#   scripts/slurm/test_cluster.sh start DIR [2]    # then: export SLURM_CONF=DIR/slurm.conf
#   scripts/slurm/test_cluster.sh stop DIR
#
# Everything it writes is in DIR. Two nodes are this machine under two names that it has. Jobs are queued again after 5 seconds instead of 120, and killed 10 seconds after
# their time limit's SIGTERM instead of 30.
set -eu
action=${1:?usage: $0 install|start|stop [DIR [2]]}

install() {
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends slurm-wlm munge
}

start() {
    nodes=$(hostname -s) port=${SLURM_TEST_PORT:-16817}
    [ "${2:-1}" = 1 ] || nodes="$nodes localhost"
    mkdir -p "$1/state" "$1/spool"
    chmod 700 "$1"
    dd if=/dev/urandom of="$1/munge.key" bs=1024 count=1 status=none
    chmod 400 "$1/munge.key"
    cat >"$1/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmctldPort=$port
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$1/munge.socket,cred_expire=5
StateSaveLocation=$1/state
SlurmdSpoolDir=$1/spool/%n
SlurmctldPidFile=$1/slurmctld.pid
SlurmdPidFile=$1/slurmd-%n.pid
SlurmctldLogFile=$1/slurmctld.log
SlurmdLogFile=$1/slurmd-%n.log
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
JobRequeue=1
KillWait=10
MinJobAge=600
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE OverTimeLimit=0 State=UP
CONF
    for node in $nodes; do
        port=$((port + 1))
        echo "NodeName=$node NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$port CPUs=$(nproc) State=UNKNOWN"
    done >>"$1/slurm.conf"
    munged --force --key-file="$1/munge.key" --socket="$1/munge.socket" --pid-file="$1/munged.pid" \
        --log-file="$1/munged.log" --seed-file="$1/munged.seed"
    export SLURM_CONF=$1/slurm.conf
    slurmctld -f "$SLURM_CONF"
    for node in $nodes; do
        slurmd -N "$node" -f "$SLURM_CONF"
    done
    for _ in $(seq 100); do
        if [ "$(sinfo --noheader --Node --format=%T 2>/dev/null | grep -c idle)" = "$(echo "$nodes" | wc -w)" ]; then
            sinfo
            return
        fi
        sleep 0.2
    done
    echo "Not all nodes came up:" >&2
    tail -n 20 "$1"/slurm*.log >&2
    stop "$1"
    exit 1
}

stop() {
    for pid in "$1"/slurmd-*.pid "$1/slurmctld.pid" "$1/munged.pid"; do
        if [ -s "$pid" ]; then
            kill "$(cat "$pid")" 2>/dev/null || true
        fi
    done
}

case $action in
install) install ;;
start | stop) "$action" "$(realpath -m "${2:?usage: $0 $action DIR}")" "${3:-1}" ;;
*)
    echo "usage: $0 install|start|stop [DIR [2]]" >&2
    exit 2
    ;;
esac
