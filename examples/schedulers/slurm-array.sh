#!/bin/bash
#SBATCH --job-name=merge-part
#SBATCH --array=0-3
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=02:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Thirty seconds before the time is up the step gets SIGUSR1: it keeps what is finished and ends with status 138.
#SBATCH --signal=USR1@30
#
#   sbatch slurm-array.sh recipe.yaml OUT
#
# One merge in four parts, a task of the array each, on as many nodes. The task that is done last finishes OUT. OUT and its work folder
# OUT.merganser-partial are on a file system that every node sees. For another number of parts give another array, from 0.
set -u

parts=$((SLURM_ARRAY_TASK_MAX + 1))
# srun, since `--signal` without `B:` reaches steps alone.
srun merganser merge "$1" -o "$2" --part "auto/$parts"
status=$?

case $status in
129 | 138 | 140 | 143) # interrupted: SIGHUP, SIGUSR1, SIGUSR2, SIGTERM
    scontrol requeue "$SLURM_JOB_ID"
    ;;
75) # the task's earlier run was on a node that died less than a minute ago, or it still runs
    sleep 60
    scontrol requeue "$SLURM_JOB_ID"
    ;;
esac
exit "$status"
