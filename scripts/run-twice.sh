#!/bin/sh
# Trains a program twice in the box, with the same seed, and says whether the weights agree to the last bit.
set -eu

program=$1
seed=${SEED:-42}
engine=docker

status=0
scripts/engine.sh || status=$?
case $status in
    0) reprobox build >/dev/null ;;
    3)
        echo "make: running without a box instead: --engine local isolates nothing, and only the recipe is applied" >&2
        make --no-print-directory torch
        engine=local
        ;;
    *) exit "$status" ;;
esac

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for turn in first second; do
    echo "--- $turn run: reprobox run --seed $seed -- python $program"
    # A pipe would hide the exit code of the run; a file shows the lines only at the end. So: both, through a fifo.
    mkfifo "$folder/pipe"
    tee "$folder/$turn" <"$folder/pipe" &
    reprobox run --engine "$engine" --gpus none --seed "$seed" -- python "$program" >"$folder/pipe"
    wait $!
    rm "$folder/pipe"
done

first=$(sed -n 's/^weights sha256 //p' "$folder/first")
second=$(sed -n 's/^weights sha256 //p' "$folder/second")
[ -n "$first" ] || { echo "make: the program printed no weights hash" >&2; exit 1; }
if [ "$first" = "$second" ]; then
    echo "--- both runs agree to the last bit: $first"
else
    echo "--- the runs differ: $first and $second" >&2
    exit 1
fi
