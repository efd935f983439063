#!/bin/bash
# The paper's study on Slurm: one task is the scheduler and the driver, every other one a worker.
#   sbatch --ntasks=9 docs/slurm.sh --profile paper --store /shared/study
#   with GPUs: sbatch --ntasks=9 --gpus-per-task=1, and RESOURCES="--resources GPU=1"
#SBATCH --job-name=ddlib
#SBATCH --cpus-per-task=1
set -eu
PATH="$PWD/.venv/bin:$PATH"
file="$PWD/scheduler-$SLURM_JOB_ID.json" # on a file system that all nodes see
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}" # threads of PyTorch in a worker
export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False # a full worker is at work; see docs/cluster.md
export DASK_LOGGING__DISTRIBUTED=error
trap 'kill $(jobs -p) 2>/dev/null || true; rm -f "$file"' EXIT

dask scheduler --host "$(hostname)" --port 0 --dashboard-address :0 --scheduler-file "$file" &
until [ -s "$file" ]; do sleep 0.2; done
srun --ntasks=$((SLURM_NTASKS - 1)) --overlap --kill-on-bad-exit=0 \
    dask worker --scheduler-file "$file" --nthreads 1 --no-dashboard --death-timeout 60 --preload ddlib.study.cluster \
    --memory-limit "${MEMORY:-auto}" ${RESOURCES:-} &
python -m ddlib work --scheduler "$file" "$@"
