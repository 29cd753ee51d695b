# Everything that a node without a GPU runs, from the same lock as a laptop:
#
#   docker build -f docker/cpu.Dockerfile -t REGISTRY/medschool:0.1.0-cpu .
#
# Without a network: `pip download -d wheels -c constraints.txt . --extra-index-url https://download.pytorch.org/whl/cpu` where there is
# one, and `--build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=/opt/medschool/wheels` here.
FROM rayproject/ray:2.60.0-py311-cpu

ARG PIP_NO_INDEX= PIP_FIND_LINKS=
COPY --chown=ray:users . /opt/medschool
RUN PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu \
    pip install --no-cache-dir --disable-pip-version-check -c /opt/medschool/constraints.txt -e /opt/medschool \
    && python -m pip check
ENV DO_NOT_TRACK=1 HF_HUB_DISABLE_TELEMETRY=1 HF_HUB_OFFLINE=1 \
    MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false MLFLOW_DISABLE_TELEMETRY=true RAY_USAGE_STATS_ENABLED=0 \
    DS_ACCELERATOR=cpu
WORKDIR /opt/medschool
