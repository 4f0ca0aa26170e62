# The server. Build from the repository's root:
#   docker build -f docker/server.Dockerfile -t model-factory-server .
# For a GPU node:
#   docker build -f docker/server.Dockerfile -t model-factory-server:cuda \
#     --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 --build-arg EXTRAS=otel,gpu \
#     --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 --build-arg PIP_CONSTRAINT= .
# For an image with an operator's plug-in: FROM this image, pip install the plug-in's package as root, then USER 10001.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/model-factory
WORKDIR /src
COPY constraints.txt ./
# Empty: the newest compatible versions.
ARG PIP_CONSTRAINT=/src/constraints.txt
# Empty: PyPI, with the CUDA build of torch.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN /opt/model-factory/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} torch
COPY pyproject.toml README.md LICENSE ./
COPY client ./client
COPY server ./server
ARG EXTRAS=otel
RUN /opt/model-factory/bin/pip install --no-cache-dir /src "/src/server[${EXTRAS}]"

FROM ${BASE}
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --home-dir /nonexistent model-factory \
 && install --directory --owner=10001 --group=10001 /var/lib/model-factory
COPY --from=build /opt/model-factory /opt/model-factory
ENV PATH=/opt/model-factory/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    MODEL_FACTORY_LISTEN=0.0.0.0:50051 \
    MODEL_FACTORY_STORE=/var/lib/model-factory \
    MODEL_FACTORY_LOG_FORMAT=json \
    MODEL_FACTORY_SERVER=localhost:50051
USER 10001
# The server writes here and under /tmp only: the root file system may be read-only.
VOLUME /var/lib/model-factory
EXPOSE 50051
STOPSIGNAL SIGTERM
# The probe is an ordinary client: with TLS the probe needs MODEL_FACTORY_CA_FILE.
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 CMD ["model-factory", "health"]
ENTRYPOINT ["model-factory", "serve"]
