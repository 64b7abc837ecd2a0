# The one image of reprobox. `reprobox build` prepares its context (this file, docker/, the box sources, wheels/) and
# passes every ARG; nothing here needs a network once the base holds Python, g++ and tini.
#
# It builds with the classic builder and with BuildKit, so it keeps to what both know: no RUN --mount, no COPY --chmod,
# no heredocs, and no syntax line (that one would need a registry).

ARG BASE=debian:bookworm-slim

FROM ${BASE} AS base
ARG COMPILER=1
USER root
COPY docker/prepare-base.sh /opt/reprobox/prepare-base.sh
RUN /bin/sh /opt/reprobox/prepare-base.sh


# The wheels stay in this stage. The label lets `docker image prune --filter label=reprobox.stage` find what is left of it.
FROM base AS venv
LABEL reprobox.stage=venv
ARG VARIANT=cpu
ARG PYTHON=3.11
COPY docker/make-venv.sh docker/trim-venv.py docker/locks/${VARIANT}.txt /tmp/
COPY wheels/ /tmp/wheels/
RUN /bin/sh /tmp/make-venv.sh /tmp/${VARIANT}.txt /tmp/wheels ${PYTHON}


# Apart from the environment, so that a change to the box does not install torch again.
FROM base AS box
LABEL reprobox.stage=box
COPY reprobox/__init__.py reprobox/errors.py reprobox/knobs.py reprobox/recipe.py /opt/reprobox/lib/reprobox/
COPY reprobox/box/ /opt/reprobox/lib/reprobox/box/
COPY docker/entrypoint /opt/reprobox/entrypoint
RUN chmod 0755 /opt/reprobox/entrypoint \
 && find /opt/reprobox/lib -name __pycache__ -prune -exec rm -r {} + \
 && PYTHONHASHSEED=0 /usr/bin/python3 -I -m compileall -q --invalidation-mode unchecked-hash /opt/reprobox/lib


FROM base
COPY --from=venv /opt/venv /opt/venv
COPY --from=box /opt/reprobox /opt/reprobox

# The hook, and the default user: written straight into the files, since useradd stamps the day into /etc/shadow. HOME and
# /workspace take any `docker run -u`.
COPY docker/install-hook.sh /opt/reprobox/install-hook.sh
RUN /bin/sh /opt/reprobox/install-hook.sh \
 && { grep -q '^[^:]*:[^:]*:1000:' /etc/group || echo 'box:x:1000:' >> /etc/group; } \
 && { grep -q '^[^:]*:[^:]*:1000:' /etc/passwd || echo 'box:x:1000:1000:box:/home/box:/bin/bash' >> /etc/passwd; } \
 && install -d -m 1777 -o 1000 -g 1000 /home/box /workspace

# The strict profile with seed 0 and 4 threads: IMAGE_ENVIRONMENT of reprobox/knobs.py, and a test holds the two together.
# The entrypoint replaces what the seed and the profile of a run say otherwise.
ENV PYTHONHASHSEED=0 \
    CUBLAS_WORKSPACE_CONFIG=:4096:8 \
    CUBLASLT_WORKSPACE_SIZE=32768 \
    NCCL_ALGO=Ring \
    NCCL_NVLS_ENABLE=0 \
    NVTE_ALLOW_NONDETERMINISTIC_ALGO=0 \
    FLASH_ATTENTION_DETERMINISTIC=1 \
    TORCHINDUCTOR_DETERMINISTIC=1 \
    OMP_NUM_THREADS=4 \
    MKL_NUM_THREADS=4 \
    OPENBLAS_NUM_THREADS=4 \
    OMP_DYNAMIC=FALSE \
    MKL_DYNAMIC=FALSE \
    OMP_WAIT_POLICY=PASSIVE
ENV LANG=C.UTF-8 \
    LC_ALL=C.UTF-8 \
    TZ=UTC \
    HOME=/home/box \
    PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/opt/reprobox/lib/reprobox/box/site

# Last, so that a new label rebuilds nothing.
ARG VARIANT=cpu
ARG VERSION=unknown
ARG TORCH=unknown
ARG LOCK_DIGEST=unknown
ARG INPUT_DIGEST=unknown
ARG BASE_DIGEST=unknown
ARG BASE_RECORD=unknown
ARG BASE_NAME=
LABEL org.opencontainers.image.title="reprobox" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.base.name="${BASE_NAME}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}" \
      reprobox.version="${VERSION}" \
      reprobox.variant="${VARIANT}" \
      reprobox.box-protocol="2" \
      reprobox.torch="${TORCH}" \
      reprobox.lock="${LOCK_DIGEST}" \
      reprobox.input="${INPUT_DIGEST}" \
      reprobox.base="${BASE_RECORD}"

USER 1000:1000
WORKDIR /workspace
ENTRYPOINT ["/usr/bin/tini", "-s", "-g", "--", "/opt/reprobox/entrypoint"]
CMD ["python"]
