# Everything that a node runs, with the CUDA build of torch, from the same lock as a laptop:
#
#   docker build -f docker/gpu.Dockerfile -t REGISTRY/medschool:0.1.0 .
#
# Without a network: `pip download -d wheels -c constraints.txt .` where there is one, and
# `--build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=/opt/medschool/wheels` here.
FROM rayproject/ray:2.60.0-py311-gpu

ARG PIP_NO_INDEX= PIP_FIND_LINKS=
COPY --chown=ray:users . /opt/medschool
RUN pip install --no-cache-dir --disable-pip-version-check -c /opt/medschool/constraints.txt -e /opt/medschool \
    && python -m pip check
ENV DO_NOT_TRACK=1 HF_HUB_DISABLE_TELEMETRY=1 HF_HUB_OFFLINE=1 \
    MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false MLFLOW_DISABLE_TELEMETRY=true RAY_USAGE_STATS_ENABLED=0
WORKDIR /opt/medschool
