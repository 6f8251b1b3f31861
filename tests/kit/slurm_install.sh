#!/usr/bin/env bash
# Install the Slurm that slurm_up.sh starts, unless it is there: Debian's packages, without their services.
set -euo pipefail
lacks() {
  echo "error: the tests of Slurm cannot run on this machine: $1" >&2
  exit 1
}
[ "$(id -u)" = 0 ] || lacks "its daemons need root"
missing=$(for name in slurmctld slurmd srun munged; do command -v "$name" > /dev/null || echo "$name"; done)
[ -z "$missing" ] && exit 0
command -v apt-get > /dev/null || lacks "it lacks $(echo $missing), and apt-get (of Debian and Ubuntu) to install them"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq || lacks "apt-get update fails"
apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge > /dev/null || lacks "apt-get install fails"
