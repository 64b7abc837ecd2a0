#!/usr/bin/env bash
# Runs the self-test and ends with its exit code: 0 same bits, 1 not, 125 could not be carried out. A table goes to the
# job's summary, and an annotation to each case that differs.
#
# SELFTEST_CERTIFICATE, SELFTEST_TOLERANCE, SELFTEST_CASES   as the flags --against, --tolerance and --cases, or empty
# IMAGE, IMAGE_REPOSITORY, IMAGE_LOCK, IMAGE_VARIANT, FLAGS   see ../image.sh
set -euo pipefail
here=${BASH_SOURCE[0]%/*}

document=$RUNNER_TEMP/reprobox-selftest.json
certificate=$RUNNER_TEMP/reprobox-certificate.json
rm -f "$certificate"

# shellcheck source=.github/actions/image.sh
. "$here/../image.sh"
choose_image
words+=(--json --save "$certificate")
if [ -n "${SELFTEST_CERTIFICATE:-}" ]; then
    words+=(--against "$SELFTEST_CERTIFICATE")
fi
if [ -n "${SELFTEST_TOLERANCE:-}" ]; then
    words+=(--tolerance "$SELFTEST_TOLERANCE")
fi
if [ -n "${SELFTEST_CASES:-}" ]; then
    words+=(--cases "$SELFTEST_CASES")
fi

code=0
passed=true
reprobox selftest "${words[@]}" >"$document" || code=$?
if [ "$code" != 0 ]; then
    passed=false
fi
if [ ! -f "$certificate" ]; then
    certificate=
fi
printf '%s\n' "passed=$passed" "document=$document" "certificate=$certificate" >>"$GITHUB_OUTPUT"
if [ "$code" = 0 ] || [ "$code" = 1 ]; then
    python3 "$here/report.py" "$document" "${SELFTEST_CERTIFICATE:-}" "${SELFTEST_CASES:-}"
else
    echo "::error title=reprobox selftest::the self-test could not be carried out (exit code $code)"
fi
exit "$code"
