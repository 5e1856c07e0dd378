#!/bin/bash
# A run on SLURM: every node of the job becomes a node of one Ray cluster, which ends with the run.
#
#     sbatch slurm.sh my.yaml /shared/runs/mine
#
# Submit it in the folder that holds the config, with the Python environment that has taugrid activated, on a file
# system that all nodes see. Near its time limit the job requeues itself, and continues. The run goes on without a node
# that is lost; if it is the first one, SLURM requeues the job.
#SBATCH --job-name=taugrid
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --output=taugrid-%j.log
#SBATCH --open-mode=append

set -euo pipefail

config=${1:?give a config and a run directory: sbatch slurm.sh CONFIG DIR}
out=${2:?give a run directory that all nodes see: sbatch slurm.sh CONFIG DIR}
job=${SLURM_JOB_ID:?submit this script with sbatch}
start=$((${SLURM_RESTART_COUNT:-0} + 1))
driver="" limit=""
say() { echo "$(date +%H:%M:%S) job $job: $*"; }

# Near the limit SLURM sends USR1, to this shell alone. It sends TERM to all processes: scancel, requeue, the limit.
trap 'limit=yes; say "the time limit is near: the run stops and keeps its work"; kill $driver 2> /dev/null || true' USR1
trap 'say "SLURM ends the job: scancel, requeue or the time limit"; kill $driver 2> /dev/null || exit 143' TERM

# Both sides need the token: `ray start` on every node, and the driver. srun hands the environment on.
RAY_AUTH_TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0
export RAY_TMPDIR=/tmp/ray-$job # short: sockets in it may have 107 characters in all
export head=$SLURMD_NODENAME log=taugrid-$job-ray-$start.log
address=$(hostname --all-ip-addresses | awk '{ print $1 }'):6379 && export address

# Ray gives a node 30 s to start, which may not be enough; a node whose Ray has ended joins again. SLURM may bind a
# node's only task to one CPU.
# shellcheck disable=SC2016
on_each_node='
if [ "$SLURMD_NODENAME" = "$head" ]; then
  set -- --head --node-ip-address="${address%:*}" --port="${address#*:}" --include-dashboard=false
else
  set -- --address="$address"
  until (: > "/dev/tcp/${address/:/\/}") 2> /dev/null; do sleep 1; done
fi
for try in 1 2 3; do
  ray start --block "$@" >> "$log" 2>&1 && break
  echo "$(date +%H:%M:%S) $SLURMD_NODENAME: Ray has ended (attempt $try of 3): see $log"
  sleep 5
done'

say "start $start on $SLURM_JOB_NODELIST; Ray writes to $log"
: > "$log"
srun --cpu-bind=none --no-kill --kill-on-bad-exit=0 bash -c "$on_each_node" 2>> "$log" &
ray=$!
end_ray() { { scancel --signal=KILL "$job.0" || true; wait; } 2> /dev/null; }
trap end_ray EXIT
until grep --quiet "ray start --address=" "$log"; do # what the head says once it is ready
  if [ $SECONDS -gt 600 ] || ! kill -0 $ray 2> /dev/null; then say "Ray did not start on $head: see $log"; exit 1; fi
  sleep 1
done
if [ -n "$limit" ]; then say "no time was left for the run: submit it with a longer --time"; exit 1; fi

taugrid run "$config" --address "$address" --out "$out" &
driver=$!
until wait "$driver" && code=0 || code=$?; ! kill -0 "$driver" 2> /dev/null; do :; done # a signal ends `wait` early
if [ -n "$limit" ] && [ "$code" -ge 128 ]; then
  end_ray
  trap "" TERM # SLURM sends it to what it requeues
  if scontrol requeue "$job"
  then say "requeued: SLURM starts it again in 2 minutes or later, and the run continues; scancel $job prevents that"
  else say "SLURM does not requeue it; to continue: sbatch slurm.sh $config $out"; fi
fi
exit "$code"
