# A training image for NVIDIA GPUs; from the root of the checkout:
#   docker build --file=launch/docker/cuda.Dockerfile --tag=REGISTRY/process_gen:cuda .
#   docker run --gpus=all REGISTRY/process_gen:cuda python -m launch.train --config=... --workdir=...
# CUDA, cuDNN and NCCL come as wheels with jax[cuda12]; the host needs the driver and NVIDIA's
# container toolkit.
FROM python:3.12-slim-bookworm

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /process_gen

COPY setup.py pyproject.toml README.md ./
RUN pip install --editable '.[cuda,gcs]'

COPY process_gen ./process_gen
COPY launch ./launch
COPY configs ./configs

CMD ["python", "-m", "launch.train", "--help"]
