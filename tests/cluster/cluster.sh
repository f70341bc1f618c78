#!/usr/bin/env bash
# A one-node SLURM cluster on this machine, as root, for the tests: Debian's packages slurm-wlm and munge.
#   apt-get install slurm-wlm munge
#   eval "$(tests/cluster/cluster.sh up DIR)"     starts it in DIR (default: a folder in /tmp), sets SLURM_CONF
#   tests/cluster/cluster.sh down DIR             cancels its jobs and stops its daemons
set -euo pipefail
action=${1:-}
folder=${2:-/tmp/lawa_exp_cluster}
export SLURM_CONF=$folder/slurm.conf

up() {
    for program in slurmctld slurmd munged; do
        PATH=$PATH:/usr/sbin command -v $program > /dev/null || { echo "$program is missing: apt-get install slurm-wlm munge" >&2; exit 2; }
    done
    mkdir -p "$folder"/{state,spool,munge}
    chmod 755 "$folder"
    chmod 711 "$folder/munge"
    [ -s "$folder/munge/key" ] || (umask 077 && head -c 128 /dev/urandom > "$folder/munge/key")
    cat > "$SLURM_CONF" <<EOF
ClusterName=onenode
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits for its last credential to expire: two minutes without cred_expire
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=batch_sched_delay=1,sched_interval=2,sched_min_interval=0
EnforcePartLimits=ALL
MpiDefault=none
ReturnToService=2
KillWait=10
MinJobAge=5
MaxArraySize=10001
MaxJobCount=20000
SlurmctldPort=${SLURMCTLD_PORT:-16817}
SlurmdPort=${SLURMD_PORT:-16818}
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
$(slurmd -C | head -1) NodeAddr=127.0.0.1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=other Nodes=ALL MaxTime=10 State=UP
EOF
    munged --force --socket "$folder/munge/socket" --key-file "$folder/munge/key" --pid-file "$folder/munge/pid" \
        --log-file "$folder/munge/log" --seed-file "$folder/munge/seed" >&2
    slurmctld -i >&2
    slurmd >&2
    for _ in $(seq 100); do
        [ "$(sinfo -h -p main -o %T 2> /dev/null)" = idle ] && break
        sleep 0.2
    done
    [ "$(sinfo -h -p main -o %T)" = idle ] || { echo "the cluster did not start: see $folder/*.log" >&2; exit 1; }
    echo "export SLURM_CONF=$SLURM_CONF"
}

down() {
    scancel --full --signal=KILL --user="$(id -un)" 2> /dev/null || true
    for pid in "$folder"/slurmd.pid "$folder"/slurmctld.pid "$folder"/munge/pid; do
        [ -s "$pid" ] && kill "$(cat "$pid")" 2> /dev/null || true
    done
}

export PATH=$PATH:/usr/sbin
case $action in
up) up ;;
down) down ;;
*) sed -n '2,5s/^# //p' "$0" >&2; exit 2 ;;
esac
