# A trainer: the base install, without model code. Build from the repository's root:
#   docker build -f docker/trainer.Dockerfile -t model-factory-trainer .
# For a GPU node: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 --build-arg PIP_CONSTRAINT=
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
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
RUN /opt/model-factory/bin/pip install --no-cache-dir /src

FROM ${BASE}
RUN useradd --create-home --uid 10001 trainer \
 && install --directory --owner=10001 --group=10001 /var/cache/model-factory
COPY --from=build /opt/model-factory /opt/model-factory
# A volume for all trainers of a node: each blob is downloaded once per node.
ENV PATH=/opt/model-factory/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    MODEL_FACTORY_CACHE=/var/cache/model-factory
USER 10001
WORKDIR /home/trainer
VOLUME /var/cache/model-factory
CMD ["model-factory", "doctor"]
