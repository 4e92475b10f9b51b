#!/bin/sh
# Builds the checks and timings that need a card into .device/, to be carried to a machine that has one and no compiler:
#
#     tools/device_bench.sh          # here: builds and strips
#     .device/run.sh [falcon|llama|all] [tokens]   # there: parity first, then timings; logs under ${OUT:-.device}
set -eu
cd "$(dirname "$0")/.."
mkdir -p .device
profile=${PROFILE:-release}
build() { cargo "$@" --profile "$profile" -p eyas-cuda --message-format=json | grep -o '"executable":"[^"]*"' | cut -d'"' -f4; }
for executable in $(build test --no-run --test card) $(build build --example ops); do
    name=$(basename "$executable" | sed 's/-[0-9a-f]*$//')
    cp "$executable" ".device/$name"
    strip ".device/$name"
done
cat > .device/run.sh <<'RUN'
#!/bin/sh
here=$(dirname "$0")
out=${OUT:-$here}
"$here/card" --test-threads=1 --nocapture >"$out/parity.log" 2>&1
parity=$?
grep -v '^note:\|stack backtrace\|^ *[0-9]*: \|^  *at ' "$out/parity.log" | tail -c 5000
"$here/ops" "$@" >"$out/ops.log" 2>&1
ops=$?
tail -c 6500 "$out/ops.log"
exit $((parity + ops))
RUN
chmod +x .device/run.sh
ls -l .device
