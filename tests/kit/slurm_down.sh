#!/usr/bin/env bash
# End the Slurm that slurm_up.sh has started with the same folder.
B=${1:?folder given to slurm_up.sh}
for pid in "$B"/run/n2.pid "$B"/run/n1.pid "$B"/run/ctld.pid "$B"/munge/pid; do
  [ -f "$pid" ] && kill "$(cat "$pid")" 2> /dev/null
done
true
