#!/usr/bin/env bash
# Builds one image of a release, tests it, pushes it by digest, and writes what it is made of beside it.
#
# VARIANT    cpu or cuda
# REGISTRY   registry; the image goes to REGISTRY/GITHUB_REPOSITORY
# TOKEN      password for it; empty for one that asks for none
#
# Outputs: digest (NAME@sha256:…) and folder (with sbom.json, provenance.json, predicate.json and certificate.json).
set -euo pipefail
here=$(cd "${BASH_SOURCE[0]%/*}" && pwd)

name=$REGISTRY/${GITHUB_REPOSITORY,,}
tag=${GITHUB_REF_NAME#v}-$VARIANT
folder=$RUNNER_TEMP/publish
mkdir -p "$folder"

id=$(reprobox build --variant "$VARIANT")

# On the CPU, which is what the runner has: the CUDA image's own kernels are tested on a machine with a GPU.
IMAGE=$id FLAGS=$'--gpus\nnone' bash "$here/actions/selftest/selftest.sh"
cp "$RUNNER_TEMP/reprobox-certificate.json" "$folder/certificate.json"

if [ -n "${TOKEN:-}" ]; then
    docker login "$REGISTRY" --username "$GITHUB_ACTOR" --password-stdin <<<"$TOKEN"
fi
digest=$(reprobox push "$name:$tag" --image "$id" --variant "$VARIANT")

# After the push, so that the registry's digest is among what the provenance is about.
reprobox sbom --image "$name:$tag" --output "$folder/sbom.json"
reprobox provenance --image "$name:$tag" --output "$folder/provenance.json" \
    --builder "$GITHUB_SERVER_URL/$GITHUB_REPOSITORY/.github/workflows/publish.yml@$GITHUB_REF"
python3 -c 'import json, sys; json.dump(json.load(sys.stdin)["predicate"], sys.stdout)' \
    <"$folder/provenance.json" >"$folder/predicate.json"

printf '%s\n' "digest=$digest" "folder=$folder" >>"$GITHUB_OUTPUT"
{
    echo "### $tag"
    echo
    echo "    $digest"
    echo
} >>"$GITHUB_STEP_SUMMARY"
