#!/usr/bin/env bash
# Start a Slurm of two nodes, n1 and n2, on the loopback interface, with all of its state below the folder $1.
# It needs slurmctld, slurmd, slurm-client and munge (Debian), and root.
set -euo pipefail
B=${1:?folder for the state of the cluster}
mkdir -p "$B"/{munge,ctld,d1,d2,run}
chmod 0700 "$B/munge"
H=$(hostname -s)
dd if=/dev/urandom of="$B/munge/key" bs=1 count=1024 2> /dev/null
chmod 0400 "$B/munge/key"
PORT=${2:-16817}
cat > "$B/slurm.conf" << CONF
ClusterName=ci
SlurmctldHost=$H(127.0.0.1)
SlurmctldPort=$PORT
SlurmctldAddr=127.0.0.1
AuthType=auth/munge
CryptoType=crypto/munge
# A job that is queued again waits until the credentials of its first start have expired.
AuthInfo=socket=$B/munge/socket,cred_expire=30
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$B/ctld
SlurmdSpoolDir=$B/d%n
SlurmctldPidFile=$B/run/ctld.pid
SlurmdPidFile=$B/run/%n.pid
SlurmctldLogFile=$B/ctld.log
SlurmdLogFile=$B/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
KillWait=3
MinJobAge=300
SlurmdTimeout=30
JobRequeue=1
SrunPortRange=17000-17999
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=$H NodeAddr=127.0.0.1 Port=$((PORT + 1)) CPUs=4 RealMemory=16000 Gres=gpu:2 State=UNKNOWN
NodeName=n2 NodeHostname=$H NodeAddr=127.0.0.1 Port=$((PORT + 2)) CPUs=4 RealMemory=16000 Gres=gpu:2 State=UNKNOWN
PartitionName=ci Nodes=n1,n2 Default=YES MaxTime=60 State=UP OverSubscribe=YES
CONF
# Devices that are no GPUs: Slurm counts them, and torch sees none.
printf "NodeName=n1 Name=gpu File=/dev/tty[0-1]\nNodeName=n2 Name=gpu File=/dev/tty[2-3]\n" > "$B/gres.conf"
export SLURM_CONF=$B/slurm.conf
munged --force --key-file="$B/munge/key" --socket="$B/munge/socket" --pid-file="$B/munge/pid" \
  --log-file="$B/munge/log" --seed-file="$B/munge/seed"
slurmctld -f "$SLURM_CONF"
slurmd -N n1 -f "$SLURM_CONF"
slurmd -N n2 -f "$SLURM_CONF"
for _ in $(seq 200); do
  [ "$(sinfo -h -t idle -o %D 2> /dev/null)" = 2 ] && exit 0
  sleep 0.1
done
sinfo -N
exit 1
