#!/bin/bash
# A run on SLURM: every node of the job becomes a node of one Ray cluster, which ends with the run.
#
#     sbatch slurm.sh my.yaml /shared/runs/mine
#
# Submit it in the folder that holds the config, with the Python environment that has taugrid activated, on a file system
# that all nodes see. The run goes on without a node that is lost, unless it is the first one. If that is lost, or the
# time runs out, submit it again: the run continues.
#SBATCH --job-name=taugrid
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --no-kill
#SBATCH --output=taugrid-%j.log

set -euo pipefail

config=${1:?give a config and a run directory: sbatch slurm.sh CONFIG DIR}
out=${2:?give a run directory that all nodes see: sbatch slurm.sh CONFIG DIR}
nodes=${SLURM_JOB_NUM_NODES:?submit this script with sbatch}

# --exclusive: at the end, Ray stops every Ray process of yours on these nodes.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$first" hostname --all-ip-addresses | awk '{ print $1 }'):6379

# Both sides need the token: `ray start` on every node, and the driver. srun hands the environment on.
RAY_AUTH_TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
export RAY_USAGE_STATS_ENABLED=0
export RAY_TMPDIR=/tmp/ray-$SLURM_JOB_ID             # short: sockets in it may have 107 characters in all
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600    # nodes may be slow to import Ray from a shared file system

srun --no-kill --kill-on-bad-exit=0 ray symmetric-run --address "$address" --min-nodes "$nodes" -- \
  taugrid run "$config" --address "$address" --out "$out"
