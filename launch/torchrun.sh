#!/usr/bin/env bash
# torchrun with what a training of ours needs around it. Its flags, then the command:
#
#     launch/torchrun.sh --nproc_per_node=8 -m lawa_exp model=gpt2_small trainer=fsdp
#     launch/torchrun.sh --nnodes=4 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=HOST:29500 -m lawa_exp ...
#
# - SIGUSR1 and SIGUSR2 (what SLURM sends before a time limit) reach the ranks too; torchrun alone would die of them.
# - Only the first signal is handed on: a second one would end torchrun before its ranks have saved.
# - The ranks have TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds (here 600, torchrun's own are 30) to save before SIGKILL.
# - The exit code is that of the node's first rank (75: stopped and saved, 3: diverged, 2: a mistake), not torchrun's 1.
set -u
signals=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
LAWA_EXP_EXIT_CODE=$(mktemp) && export LAWA_EXP_EXIT_CODE
"${PYTHON:-python}" -m torch.distributed.run --signals-to-handle="$signals" "$@" &
torchrun=$!
asked=
ask() {
    [ -n "$asked" ] || kill -s "$1" "$torchrun" 2>/dev/null
    asked=yes
}
for signal in TERM INT HUP USR1 USR2; do
    # shellcheck disable=SC2064
    trap "ask $signal" "$signal"
done
while kill -0 "$torchrun" 2>/dev/null; do
    wait "$torchrun"
done
wait "$torchrun"
code=$?
ours=$(cat "$LAWA_EXP_EXIT_CODE")
rm -f "$LAWA_EXP_EXIT_CODE"
if [ "$code" != 0 ] && [ "${ours:-0}" != 0 ]; then
    code=$ours
fi
exit "$code"
