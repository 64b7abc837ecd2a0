# shellcheck shell=bash
# Sourced by run and selftest: puts the words that choose the image, and those of FLAGS, into the array `words`.
#
# IMAGE              an image, taken as it is
# IMAGE_REPOSITORY   a registry's repository, such as ghcr.io/team/box: the image of the lock is pulled from there
# IMAGE_LOCK         the lock file
# IMAGE_VARIANT      cpu or cuda
# FLAGS              further flags, one word a line

words=()

choose_image() {
    local image=${IMAGE:-} word
    if [ -z "$image" ] && [ -n "${IMAGE_REPOSITORY:-}" ]; then
        image=$(reprobox pull "$IMAGE_LOCK" --from "$IMAGE_REPOSITORY" --variant "$IMAGE_VARIANT") || {
            echo "::error title=reprobox pull,file=$IMAGE_LOCK::the $IMAGE_VARIANT image of the lock could not be had"
            return 125
        }
    fi
    case $image in
        '' | *sha256:*) ;;
        *) echo "::warning title=reprobox::$image is named without a digest, and may be another tomorrow" ;;
    esac
    if [ -n "$image" ]; then
        words+=(--image "$image")
    fi
    while IFS= read -r word; do
        if [ -n "$word" ]; then
            words+=("$word")
        fi
    done <<<"${FLAGS:-}"
}
