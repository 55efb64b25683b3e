#!/bin/bash
#PBS -N merge
#PBS -l select=1:ncpus=8:mem=16gb
#PBS -l walltime=02:00:00
#PBS -r y
#PBS -j oe
#
#   qsub -v RECIPE=recipe.yaml,OUT=merged pbs.sh
#
# Threads follow NCPUS. PBS puts no bound on memory into the environment: where no control group enforces it, say it here.
set -u
cd "$PBS_O_WORKDIR" || exit 2

# exec: the signals that PBS sends to the job reach the program itself. SIGTERM comes before SIGKILL; what is finished is kept.
# A job that PBS runs again (`-r y`) goes on.
exec merganser merge "$RECIPE" -o "$OUT" --resume --memory-budget 12G
