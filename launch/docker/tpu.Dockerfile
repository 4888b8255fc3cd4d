# A training image for TPU VMs and GKE; from the root of the checkout:
#   docker build --file=launch/docker/tpu.Dockerfile --tag=REGISTRY/process_gen:tpu .
#   docker push REGISTRY/process_gen:tpu
FROM python:3.12-slim-bookworm

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /process_gen

# The ranges of setup.py decide every version; jax[tpu] brings the libtpu that it was tested with.
# Dependencies are a layer of their own: a change of the code does not install them again.
COPY setup.py pyproject.toml README.md ./
RUN pip install --editable '.[tpu,gcs]'

COPY process_gen ./process_gen
COPY launch ./launch
COPY configs ./configs

# launch.submit gives the command.
CMD ["python", "-m", "launch.train", "--help"]
