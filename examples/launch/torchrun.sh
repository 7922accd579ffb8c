#!/usr/bin/env bash
# One run over the processes of one or several machines, by torchrun. From the folder in which the recipe's paths hold:
#
#     bash examples/launch/torchrun.sh                                                        # one machine
#     RECIPE=mine.yaml OUT=/shared/mine bash examples/launch/torchrun.sh --set training.steps=1000
#     NODES=2 NODE_RANK=0 ENDPOINT=node0:29400 OUT=/shared/mine bash examples/launch/torchrun.sh    # on node0, and with NODE_RANK=1 on the other
#
# What follows the script's name goes to 'fewstep distill'. Stop it by Ctrl-C, SIGTERM or SIGHUP; the same line goes on from where it stopped.
set -euo pipefail

RECIPE=${RECIPE:-imagenet64-disback}
OUT=${OUT:-runs/$(basename "$RECIPE" .yaml)}    # one folder that all machines see
MODE=${MODE:-ddp}                               # ddp, or fsdp where a copy of everything does not fit into one GPU
PROCESSES=${PROCESSES:-gpu}                     # a machine; 'gpu' is one for each GPU
NODES=${NODES:-1}
NODE_RANK=${NODE_RANK:-0}
ENDPOINT=${ENDPOINT:-localhost:0}               # host:port of machine 0; on one machine port 0 takes a free one
RUN_ID=${RUN_ID:-fewstep-$(basename "$OUT")}    # alike on all machines of a run, and another for another run at the same endpoint
RESTARTS=${RESTARTS:-3}                         # how often a run with a dead worker begins again from its last checkpoint
PYTHON=${PYTHON:-python}

# After SIGTERM a run finishes its step and saves; torchrun would kill it after 30 seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
# Processes share the cores, which a process by itself would take as all its own.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

rendezvous=(--rdzv-backend c10d --rdzv-endpoint "$ENDPOINT" --rdzv-id "$RUN_ID")
if [[ $NODES -gt 1 ]]; then
    # Said rather than guessed: the guess compares host names, and an alias or a second network card has another.
    rendezvous+=(--rdzv-conf "is_host=$([[ $NODE_RANK -eq 0 ]] && echo true || echo false)")
fi

# --resume is always there: without a checkpoint it begins, and a worker that is started again must not begin anew.
exec "$PYTHON" -m torch.distributed.run --nnodes "$NODES" --nproc-per-node "$PROCESSES" --max-restarts "$RESTARTS" "${rendezvous[@]}" \
    -m fewstep distill "$RECIPE" --out "$OUT" --resume --set distributed.mode="$MODE" "$@"
