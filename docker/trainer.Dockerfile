# What a trainer needs: the base install, no model code. Build from the repository's root:
#   docker build -f docker/trainer.Dockerfile -t model-factory-trainer .
FROM python:3.11-slim-bookworm
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url ${TORCH_INDEX} torch
COPY pyproject.toml README.md /src/
COPY client /src/client
RUN pip install --no-cache-dir /src && useradd --create-home --uid 10001 trainer
USER trainer
WORKDIR /home/trainer
# MODEL_FACTORY_SERVER names the server; mount a volume that all trainers of the node share here.
ENV MODEL_FACTORY_CACHE=/home/trainer/cache
CMD ["model-factory", "--help"]
