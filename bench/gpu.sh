#!/usr/bin/env bash
# Everything that is worth knowing of a GPU, in stages of at most ten minutes each, and one table of what is done.
#
#   bench/gpu.sh OUT STAGE...     stages, in this order without a name: parity encoder large batch decode predict train
#                                 memory compiled float32
#   bench/gpu.sh OUT table        writes OUT/table.md again from what is there
#
# Each stage writes OUT/STAGE*.json and is left out where that exists, so a stage that was cut short is simply run again.
# STAGE_SECONDS bounds a stage (570). REDUCED=1 takes MobileSAM at 256 px once each: minutes on a CPU, to try the script.
# PYTHON is the interpreter; torch must be its build for CUDA.
set -u
[ $# -ge 1 ] || { sed -n '2,11p' "$0"; exit 2; }
out=$1; shift
python=${PYTHON:-python}
limit=${STAGE_SECONDS:-570}
mkdir -p "$out"

if [ -n "${REDUCED:-}" ]; then
    base=mobile_sam; larger=mobile_sam; parity=mobile_sam
    sizes="--image-size 256 --repeats 1"; pictures="1 2"; prompts="1 2"; dtype=float32; batch=2; compile=
else
    base=sam_vit_b; larger="sam_vit_l sam_vit_h"; parity=hq_sam_vit_b
    sizes="--repeats 5"; pictures="1 8 32"; prompts="1 20 64"; dtype=bfloat16; batch=8; compile=--compile
fi

bench() { # name, options: one file of results
    local name=$1; shift
    if [ -e "$out/$name.json" ]; then echo "$name: kept"; return 0; fi
    echo "$name: bench $*"
    timeout "$limit" "$python" -m bench "$@" --json "$out/$name.json" || failed="$failed $name"
}

stage() {
    case $1 in
    parity) # each stage's difference from the official model, within its bound
        [ -e "$out/parity.json" ] && { echo "parity: kept"; return 0; }
        # shellcheck disable=SC2086  # options are words
        timeout "$limit" "$python" -m eval.parity --random "$parity" ${REDUCED:+--image-size 256} \
            --json "$out/parity.json" || failed="$failed parity" ;;
    encoder) bench encoder --rows encoder --models $base --dtype $dtype --pictures 1 8 $sizes ;;
    large) bench large --rows encoder --models $larger --dtype $dtype --pictures 1 8 $sizes ;;
    batch) bench batch --rows point --models $base --dtype $dtype --pictures $pictures $sizes ;;
    decode) bench decode --rows decode --models $base --dtype $dtype --prompts $prompts $sizes ;;
    predict) bench predict --rows predict stability --models $base --dtype $dtype $sizes ;;
    train) bench train --rows train --models $base --batch-size $batch $sizes ;;
    memory) bench memory --rows encoder decode --models $base --dtype $dtype --prompts $prompts --memory $sizes ;;
    compiled) bench compiled --rows encoder decode --models $base --dtype $dtype --prompts $prompts $compile $sizes ;;
    float32) bench float32 --rows encoder decode --models $base --dtype float32 --pictures 1 8 --prompts $prompts $sizes ;;
    table) ;;
    *) echo "$1: no stage"; exit 2 ;;
    esac
}

table() {
    "$python" -m bench.gpu_table "$out"
}

failed=
[ $# -gt 0 ] || set -- parity encoder large batch decode predict train memory compiled float32
for name in "$@"; do
    stage "$name"
    table
done
[ -z "$failed" ] || { echo "not done:$failed"; exit 1; }
