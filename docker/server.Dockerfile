# The server. Build from the repository's root:
#   docker build -f docker/server.Dockerfile -t model-factory-server .
# For a GPU node:
#   docker build -f docker/server.Dockerfile --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 \
#     --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 -t model-factory-server:cuda .
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
# Both bases have a Python of 3.11 or newer.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/model-factory
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN /opt/model-factory/bin/pip install --no-cache-dir --index-url ${TORCH_INDEX} torch
COPY pyproject.toml README.md /src/
COPY client /src/client
COPY server /src/server
RUN /opt/model-factory/bin/pip install --no-cache-dir /src /src/server

FROM ${BASE}
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --home-dir /nonexistent model-factory \
 && install --directory --owner=model-factory /var/lib/model-factory
COPY --from=build /opt/model-factory /opt/model-factory
USER model-factory
VOLUME /var/lib/model-factory
EXPOSE 50051
# Inside a container every interface is the container's own; publish the port to loopback or a trusted network only.
ENTRYPOINT ["/opt/model-factory/bin/model-factory", "serve", "--store", "/var/lib/model-factory"]
CMD ["--listen", "0.0.0.0:50051"]
