#!/usr/bin/env bash
# Runs RUN_COMMAND in the box; its exit code is this script's. What was run on goes to the job's summary.
#
# RUN_COMMAND   a bash script
# RUN_SEED      base seed, or empty
# IMAGE, IMAGE_REPOSITORY, IMAGE_LOCK, IMAGE_VARIANT, FLAGS   see ../image.sh
set -euo pipefail
here=${BASH_SOURCE[0]%/*}

# shellcheck source=.github/actions/image.sh
. "$here/../image.sh"
choose_image
if [ -n "${RUN_SEED:-}" ]; then
    words+=(--seed "$RUN_SEED")
fi

last() {
    reprobox runs show --json last 2>/dev/null || true
}

before=$(last)
code=0
reprobox run "${words[@]}" -- bash -c "$RUN_COMMAND" || code=$?
echo "exit-code=$code" >>"$GITHUB_OUTPUT"
record=$(last)
# A run that was refused has no record, and the last one is an earlier run's.
if [ "$record" != "$before" ]; then
    printf '%s' "$record" | python3 "$here/summary.py"
fi
if [ "$code" != 0 ]; then
    echo "::error title=reprobox run::the command ended with exit code $code"
fi
exit "$code"
