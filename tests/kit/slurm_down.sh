#!/usr/bin/env bash
# End the Slurm that slurm_up.sh has started with the same folder, and wait until nothing of it writes there.
B=${1:?folder given to slurm_up.sh}
for file in "$B"/run/n2.pid "$B"/run/n1.pid "$B"/run/ctld.pid "$B"/munge/pid; do
  [ -f "$file" ] || continue
  pid=$(cat "$file")
  kill "$pid" 2> /dev/null
  for _ in $(seq 100); do
    kill -0 "$pid" 2> /dev/null || break
    sleep 0.1
  done
done
true
