# The two images of a release, from the project's folder:
#
#   docker build --target operator -t servepipe/operator:VERSION .
#   docker build --target runtime  -t servepipe/runtime:VERSION-rayRAY .
#
# Packages are those of requirements.lock, checked by their hashes. They go into the base image's own Python, not into a
# virtual environment: for `runtimeEnv.pip` Ray lays a small environment over the former, but copies all of the latter.
#
# An index of your own comes with pip's configuration as a secret, which gets into no layer and no history:
#
#   docker build --secret id=pip.conf,src=pip.conf --secret id=ca.crt,src=ca.crt ...
#
# (ca.crt only for a certificate authority of your own, which the former names by `cert = /run/secrets/ca.crt`.)

ARG BASE=docker.io/library/python:3.11-slim-bookworm

# -- what is fetched and built, with pip; images get nothing of these stages but /install

FROM ${BASE} AS pip
ENV PIP_NO_CACHE_DIR=1 PIP_NO_DEPS=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

FROM pip AS locks
WORKDIR /src
COPY scripts/select_lock.py scripts/
COPY pyproject.toml requirements.lock ./
RUN mkdir /locks \
 && python scripts/select_lock.py --extra operator > /locks/operator.txt \
 && python scripts/select_lock.py --extra runtime > /locks/runtime.txt \
 && python scripts/select_lock.py --extra runtime --pins > /locks/constraints.txt \
 && python scripts/select_lock.py --group build > /locks/build.txt

FROM pip AS servepipe
COPY --from=locks /locks/build.txt /locks/
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.crt PIP_CONFIG_FILE=/run/secrets/pip.conf \
    python -m pip install --only-binary :all: --require-hashes -r /locks/build.txt
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY sdk/src sdk/src
COPY operator/src operator/src
RUN python -m pip install --no-build-isolation --no-index --root /install --no-warn-script-location . \
 && find /install -name direct_url.json -delete

FROM pip AS operator-packages
COPY --from=locks /locks/operator.txt /locks/
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.crt PIP_CONFIG_FILE=/run/secrets/pip.conf \
    python -m pip install --only-binary :all: --require-hashes --root /install --no-warn-script-location -r /locks/operator.txt
# A class for everything that Kubernetes has, of which the operator loads next to none: their bytecode takes 50 MB.
RUN find /install -path '*/kubernetes/*client/*/__pycache__/*' -type f -delete

FROM pip AS runtime-packages
COPY --from=locks /locks/runtime.txt /locks/
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.crt PIP_CONFIG_FILE=/run/secrets/pip.conf \
    python -m pip install --only-binary :all: --require-hashes --root /install --no-warn-script-location -r /locks/runtime.txt
# What only Java runs, which is not here, and what only a debugger of the dashboard's scripts reads: 40 MB.
RUN find /install -path '*/ray/jars/*' -type f -delete \
 && find /install -path '*/ray/dashboard/client/*.map' -type f -delete
COPY --from=locks /locks/constraints.txt /install/opt/servepipe/

# -- the operator: nothing to build or to install with, and a user without a name

FROM ${BASE} AS operator
COPY --from=operator-packages /install/ /
COPY --from=servepipe /install/ /
RUN python -m pip check && python -m pip uninstall --yes --root-user-action=ignore setuptools wheel pip
# Bytecode is in the image, and nothing is written but to /tmp.
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
WORKDIR /
ENTRYPOINT ["servepipe-operator"]
ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=
LABEL org.opencontainers.image.title="servepipe operator" \
      org.opencontainers.image.description="Runs ServePipelines: graphs of models on Ray Serve" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# -- the runtime: of heads, workers and ingress, and the base of images with models

FROM ${BASE} AS runtime
# KubeRay's init container and probes call bash and wget. Group 0 may write to the home, too: OpenShift runs pods as a
# user of its own choice in that group.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends wget \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/* \
 && useradd --uid 1000 --user-group --no-log-init --home-dir /home/ray --no-create-home --shell /bin/bash ray \
 && install --directory --owner=1000 --group=0 --mode=0775 /home/ray \
 && install --directory /app
COPY --from=runtime-packages /install/ /
COPY --from=servepipe /install/ /
# pip stays: images with models are built with it, and Ray installs `runtimeEnv.pip` by it.
RUN python -m pip check
# Models are found in /app, from wherever Ray starts a replica.
ENV HOME=/home/ray USER=ray PYTHONPATH=/app PYTHONUNBUFFERED=1
# What Serve calls when its controller and its HTTP servers start; it has to be in this image.
ENV RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH=servepipe.runtime.app_builds:share_builder
ENV RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=servepipe.runtime.direct_http:middlewares
USER 1000:1000
WORKDIR /app
CMD ["bash"]
ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=
LABEL org.opencontainers.image.title="servepipe runtime" \
      org.opencontainers.image.description="Ray Serve with servepipe: the base of images with models" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
