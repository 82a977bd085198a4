#!/bin/bash
# Starts a Slurm cluster of one node, this machine, on loopback, and runs until it is stopped by a signal.
#
#     apt-get install slurm-wlm munge openmpi-bin      (Debian 12)
#     bash tests/one_node_slurm.sh FOLDER CPUS &
#     export SLURM_CONF=FOLDER/slurm.conf              (then sinfo, sbatch, squeue, ...)
#
# All files are in FOLDER, an absolute path, and all daemons belong to the user who starts them: no service, key or
# setting of the system is used or changed. Ports: 16817 and 16818.
set -euo pipefail
folder=$1 cpus=$2 user=$(id -un) host=$(hostname -s)
PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$folder"/{spool,state}
head -c 128 /dev/urandom >"$folder/munge.key"
chmod 600 "$folder/munge.key"
cat >"$folder/slurm.conf" <<CONF
ClusterName=loopback
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=60
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$folder/slurm.conf
stop() {
    trap "" EXIT TERM INT
    scancel --user="$user"
    for _ in {1..300}; do [ "$(squeue --noheader)" ] || break; sleep 0.1; done
    kill $(jobs -p)
    wait
}
trap stop EXIT
trap 'exit 0' TERM INT
munged --foreground --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munged.pid" --seed-file="$folder/munge.seed" --log-file="$folder/munged.log" \
    >"$folder/munged.out" 2>&1 &
until [ -S "$folder/munge.socket" ]; do sleep 0.1; done
slurmctld -D -i >"$folder/slurmctld.log" 2>&1 &
slurmd -D >"$folder/slurmd.log" 2>&1 &
wait
