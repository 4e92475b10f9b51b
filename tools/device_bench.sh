#!/bin/sh
# Everything that needs a card, for a machine that has one and perhaps neither compiler nor network.
#
#     tools/device_bench.sh build        here: builds and strips into .device/, which is then carried over
#     .device/run.sh check               there: every operation against its reference, and the card's own tests
#     .device/run.sh speed               there: the table of the documentation, one line of JSON each, in speed.jsonl
#     .device/run.sh generation          there: prompts and answers, in generation.txt with where a step's time goes
#     .device/run.sh lasts MODEL ROWS    there: time to the first step, equal bits twice and across a kill
#     .device/run.sh replicas MODEL ROWS there: two replicas on the one card against one, or on DEVICES=cuda:0,1; ROWS may be builtin
#
# Logs go to ${OUT:-.device}.
set -eu
cd "$(dirname "$0")/.."
mkdir -p .device
if [ "${1:-build}" = build ]; then
    cargo build --release -p eyas
    for test in card generate; do
        built=$(cargo test --release -p eyas-cuda --test $test --no-run --message-format=json |
            grep -o '"executable":"[^"]*"' | cut -d'"' -f4)
        strip -o .device/$test "$built"
    done
    strip -o .device/eyas "${CARGO_TARGET_DIR:-target}/release/eyas"
fi
cat > .device/run.sh <<'RUN'
#!/bin/bash
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-$here}
eyas=$here/eyas

check() {
    "$eyas" doctor --device cuda && for test in card generate; do
        "$here/$test" --test-threads=1 --nocapture || return
    done >"$out/card.log" 2>&1
    local code=$?
    grep -E '^test |rows pass|test result' "$out/card.log"
    return $code
}

# Shape, batch, length, steps, further arguments.
bench() {
    local shape=$1 batch=$2 length=$3 steps=$4
    shift 4
    "$eyas" bench train --device cuda --shape "$shape" --batch "$batch" --length "$length" --steps "$steps" "$@" \
        >>"$out/speed.txt" || return
    "$eyas" bench train --device cuda --shape "$shape" --batch "$batch" --length "$length" --steps "$steps" "$@" \
        --json | tee -a "$out/speed.jsonl" | python3 -c '
import json, sys
for line in sys.stdin:
    b = json.loads(line)
    print("%-11s %2d x %4d%s %7.0f tokens/s %5.1f %% of the limit, %6.2f GB (predicted %6.2f), %2d blocks kept" % (
        b["shape"], b["batch"], b["length"], "~" if b["lognormal"] else " ", b["tokens_per_second"],
        100 * b["share_of_limit"], b["peak_bytes"] / 1e9, b["predicted_bytes"] / 1e9, b["kept_blocks"]))'
}

speed() {
    bench falcon-7b 16 1024 6
    bench falcon-7b 1 512 20
    bench falcon-7b 16 256 10
    bench llama-3-8b 8 1024 6
    bench llama-3-8b 16 1024 4 --gpu-memory 10.5GB --set optim=paged_adamw_8bit
    # The published run: 64 conversations a step; 320 of them take 320 times the mean.
    bench falcon-7b 64 240 40 --lognormal
}

generation() {
    for shape in falcon-7b llama-3-8b; do
        "$eyas" bench generate --device cuda --shape $shape --sequences 1,8,32,64 --adapters 0,1,2 --profile |
            tee -a "$out/generation.txt" | grep -E "on NVIDIA|at once|answers|floor|prompts"
    done
}

lasts() {
    local model=$1 rows=$2
    local common=("$eyas" train mental-health --device cuda --model "$model" --dataset "$rows"
        --set target_modules=all-linear --set eval_share=0 --set per_device_train_batch_size=4
        --set gradient_accumulation_steps=1 --set optim=adamw_torch)
    cd "$(mktemp -d)" || return
    local begun=$(date +%s%N)
    "${common[@]}" --output first --set max_steps=1 --set save_steps=0 2>&1 | while IFS= read -r line; do
        case $line in "step 1/"*) echo "first step finished $((($(date +%s%N) - begun) / 1000000)) ms after the start" ;; esac
    done
    for run in one two; do
        "${common[@]}" --output $run --set max_steps=12 --set save_steps=4 >$run.log 2>&1
    done
    "${common[@]}" --output killed --set max_steps=12 --set save_steps=4 >killed.log 2>&1 &
    local pid=$!
    while [ ! -d killed/checkpoint-4 ] && kill -0 $pid; do sleep 0.05; done
    kill -9 $pid
    wait $pid
    "${common[@]}" --output killed --set max_steps=12 --set save_steps=4 --resume >resumed.log 2>&1
    grep -h "going on" resumed.log
    sha256sum {one,two,killed}/adapter_model.safetensors
    [ "$(sha256sum {one,two,killed}/adapter_model.safetensors | cut -d' ' -f1 | sort -u | wc -l)" = 1 ] &&
        echo "the same bits twice, and across a kill"
}

# Two replicas, on one card unless DEVICES says other, against one that accumulates over as many micro-batches, in f32 and in the card's own type, with
# one micro-batch each (the gradient's sums are the same) and with two (they differ in their order); and resumed.
replicas() {
    local model=$1 rows=$2 kind accumulation output code=0
    local devices=${DEVICES:-cuda:0,0}
    export EYAS_SHARE_CARD=1
    cd "$(mktemp -d)" || return
    for kind in float32 auto; do
        for accumulation in 1 2; do
            local run=("$eyas" train demo --model "$model" --dataset "$rows" --set max_steps=12 --set save_steps=6
                --set save_total_limit=9 --set bf16=false --set fp16=false --set bnb_4bit_compute_dtype=$kind)
            "${run[@]}" --device cuda:0 --output one --set gradient_accumulation_steps=$((2 * accumulation)) \
                >>"$out/replicas.log" 2>&1 || return
            for output in two again; do
                "${run[@]}" --device $devices --output $output --set gradient_accumulation_steps=$accumulation \
                    >>"$out/replicas.log" 2>&1 || return
            done
            cp -r two resumed
            rm -r resumed/checkpoint-12 resumed/adapter_model.safetensors
            "${run[@]}" --device $devices --output resumed --resume --set gradient_accumulation_steps=$accumulation \
                >>"$out/replicas.log" 2>&1 || return
            python3 - $kind $accumulation <<'PYTHON' || code=1
import json, sys

kind, accumulation = sys.argv[1:]

def logged(run, key):
    with open(run + "/trainer_state.json") as file:
        return [entry[key] for entry in json.load(file)["log_history"] if key in entry]

def bits(run):
    with open(run + "/adapter_model.safetensors", "rb") as file:
        return file.read()

allowed = 1e-4 if kind == "float32" else 2e-2
apart = 0
for key in ("loss", "eval_loss"):
    one, two = logged("one", key), logged("two", key)
    assert len(one) == len(two) > 0, key
    apart = max([apart] + [abs(a - b) for a, b in zip(one, two)])
again, resumed = (bits(run) == bits("two") for run in ("again", "resumed"))
print("%s, %s micro-batch(es) each on two replicas against twice as many on one: losses at most %.1e apart (%.0e allowed), "
      "the same adapter: %s; two replicas again: %s; resumed after six steps: %s" % (
          kind, accumulation, apart, allowed, bits("one") == bits("two"), again, resumed))
sys.exit(apart > allowed or not again or not resumed)
PYTHON
            rm -r one two again resumed
        done
    done
    return $code
}

"$@"
RUN
chmod +x .device/run.sh
ls -l .device
