#!/bin/bash
#SBATCH --job-name=merge
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=02:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Thirty seconds before the time is up the step gets SIGUSR1: it keeps what is finished and ends with status 138.
#SBATCH --signal=USR1@30
#
#   sbatch slurm.sh recipe.yaml OUT
#
# Threads and memory follow the allocation by themselves. OUT and its work folder OUT.merganser-partial are on a file system that
# every node sees, so that a requeued job goes on wherever it lands.
set -u

# srun, since `--signal` without `B:` reaches steps alone.
srun merganser merge "$1" -o "$2" --resume
status=$?

case $status in
129 | 138 | 140 | 143) # interrupted: SIGHUP, SIGUSR1, SIGUSR2, SIGTERM
    scontrol requeue "$SLURM_JOB_ID"
    ;;
75) # another merganser is at work on OUT: its job will finish it
    echo "another job is merging into $2"
    ;;
esac
exit "$status"
