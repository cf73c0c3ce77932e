#!/bin/bash
# A real Slurm of one node on this machine, for tests: slurmctld, slurmd and munged, no accounting. As root.
#
#   scripts/slurm/test_cluster.sh install          # Debian's slurm-wlm and munge
#   scripts/slurm/test_cluster.sh start DIR        # then: export SLURM_CONF=DIR/slurm.conf
#   scripts/slurm/test_cluster.sh stop DIR
#
# Everything it writes is in DIR. Jobs are queued again after 5 seconds instead of 120, and killed 10 seconds after
# their time limit's SIGTERM instead of 30.
set -eu
action=${1:?usage: $0 install|start|stop [DIR]}

install() {
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends slurm-wlm munge
}

start() {
    mkdir -p "$1/state" "$1/spool"
    chmod 700 "$1"
    dd if=/dev/urandom of="$1/munge.key" bs=1024 count=1 status=none
    chmod 400 "$1/munge.key"
    cat >"$1/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmctldPort=${SLURM_TEST_PORT:-16817}
SlurmdPort=$((${SLURM_TEST_PORT:-16817} + 1))
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$1/munge.socket,cred_expire=5
StateSaveLocation=$1/state
SlurmdSpoolDir=$1/spool
SlurmctldPidFile=$1/slurmctld.pid
SlurmdPidFile=$1/slurmd.pid
SlurmctldLogFile=$1/slurmctld.log
SlurmdLogFile=$1/slurmd.log
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
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE OverTimeLimit=0 State=UP
CONF
    munged --force --key-file="$1/munge.key" --socket="$1/munge.socket" --pid-file="$1/munged.pid" \
        --log-file="$1/munged.log" --seed-file="$1/munged.seed"
    export SLURM_CONF=$1/slurm.conf
    slurmctld -f "$SLURM_CONF"
    slurmd -f "$SLURM_CONF"
    for _ in $(seq 100); do
        if sinfo --noheader --format=%T 2>/dev/null | grep -q idle; then
            sinfo
            return
        fi
        sleep 0.2
    done
    echo "The node did not come up:" >&2
    tail -n 20 "$1/slurmctld.log" "$1/slurmd.log" >&2
    stop "$1"
    exit 1
}

stop() {
    for daemon in slurmd slurmctld munged; do
        if [ -s "$1/$daemon.pid" ]; then
            kill "$(cat "$1/$daemon.pid")" 2>/dev/null || true
        fi
    done
}

case $action in
install) install ;;
start | stop) "$action" "$(realpath -m "${2:?usage: $0 $action DIR}")" ;;
*)
    echo "usage: $0 install|start|stop [DIR]" >&2
    exit 2
    ;;
esac
