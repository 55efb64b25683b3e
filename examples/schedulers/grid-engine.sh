#!/bin/bash
#$ -N merge
#$ -cwd
#$ -pe smp 8
#$ -l h_rt=02:00:00
#$ -j y
# Runs again after a crash of the node, and where the script ends with status 99; `-notify` sends SIGUSR2 before SIGKILL.
#$ -r y
#$ -notify
#
#   qsub grid-engine.sh recipe.yaml OUT
#
# Threads follow NSLOTS. The signals go to the whole job, this shell too, which must outlive them.
trap '' USR1 USR2
set -u

# In a subshell that hears them again: what is ignored at the start stays ignored.
(
    trap - USR1 USR2
    exec merganser merge "$1" -o "$2" --resume --memory-budget 12G
)
status=$?
case $status in
129 | 138 | 140 | 143) exit 99 ;; # interrupted: run the job again
esac
exit "$status"
