#!/bin/bash
# One run as a SLURM job, without submitit. From a login node, with the environment of lawa_exp active:
#
#   launch/sbatch_single.sh model=gpt2_small avg=lawa                           (shows the plan, then submits)
#   SBATCH_PARTITION=gpu SBATCH_ACCOUNT=mine launch/sbatch_single.sh model=gpt2_small trainer.device=cuda
#
# Change these lines to what the run needs: a rank is a task, one for each GPU (add --gpus-per-node).
#SBATCH --job-name=lawa_exp
#SBATCH --cpus-per-task=1
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=lawa_exp-%j.log
nodes=1
tasks_per_node=1

# On the login node. A mistake in the command ends here with one line. The code is copied, with its configuration
# files and the module of model.builder: editing them later does not change the queued job.
if [ -z "${SLURM_JOB_ID:-}" ]; then
    command -v sbatch > /dev/null || { echo "error: no SLURM on this machine (sbatch is not in PATH)" >&2; exit 2; }
    plan=$(WORLD_SIZE=$((nodes * tasks_per_node)) python -m lawa_exp "$@" plan=true) || exit
    echo "$plan"
    run=$(realpath -m "$(sed -n 's/^run_dir=//p' <<< "$plan")")
    while read -r job comment; do
        [ "$comment" != "$run" ] || { echo "error: run_dir=$run is in the queue already, as job $job" >&2; exit 2; }
    done < <(squeue --me --noheader --format="%i %k")
    builder=$(printf '%s\n' "$@" | sed -n 's/^model\.builder=\([^:]*\):.*/\1/p')
    # shellcheck disable=SC2086
    code=$(python -m lawa_exp.launch.slurm.pin "$(dirname "$run")/code" $builder) || exit
    LAWA_EXP_RUN=$run LAWA_EXP_CODE=$code exec sbatch --comment="$run" --nodes=$nodes --ntasks-per-node=$tasks_per_node "$0" "$@"
fi

if [ -z "${LAWA_EXP_RUN:-}" ]; then
    echo "error: start this script itself (launch/sbatch_single.sh KEY=VALUE ...), which submits it; not by sbatch, nor in a job" >&2
    exit 2
fi
# In the job. Signals go to the training, which saves and ends with code 75; this shell lives on to requeue it.
trap : TERM USR1 USR2
export PYTHONSAFEPATH=1 PYTHONPATH=$LAWA_EXP_CODE:$PWD${PYTHONPATH:+:$PYTHONPATH}
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" python -m lawa_exp "$@" run_dir="$LAWA_EXP_RUN"
code=$?
python -m lawa_exp.launch.slurm.requeue "$LAWA_EXP_RUN" $code
exit $code
