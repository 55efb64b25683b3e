#!/bin/bash
#BSUB -J merge
#BSUB -n 8
#BSUB -R "span[hosts=1] rusage[mem=16GB]"
#BSUB -W 2:00
# Ten minutes before the time is up: SIGUSR2, which ends the merge with status 140 and keeps what is finished.
#BSUB -wt 10
#BSUB -wa USR2
# LSF runs the job again where it ends so.
#BSUB -Q "129 138 140 143"
#BSUB -o merge.%J.log
#
#   RECIPE=recipe.yaml OUT=merged bsub < lsf.sh
#
# Threads follow LSB_DJOB_NUMPROC.
exec merganser merge "$RECIPE" -o "$OUT" --resume --memory-budget 12G
