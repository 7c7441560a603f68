# The gateway's image, and one with Locust that loads it. Build: docker build -t tritonpose .
# docs/deployment.md says what is inside, what runs beside it, and how these lines are tested.

# One pin for all stages: the interpreter that built the environment is the one that runs it.
FROM python:3.13.14-slim-trixie AS base
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

FROM base AS build
WORKDIR /build
# Cached wheels lie on another file system than the environment, which must not be linked to them anyway.
ENV UV_LINK_MODE=copy \
    UV_PYTHON_DOWNLOADS=never
# Mirrors: docker build --build-arg PIP_INDEX_URL=... --build-arg UV_DEFAULT_INDEX=...
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX
COPY requirements/tools.txt requirements/tools.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install --disable-pip-version-check --root-user-action=ignore --only-binary=:all: \
    --require-hashes --requirement requirements/tools.txt
# serving, and OpenTelemetry (5 MB), which is off unless variables name a collector
COPY requirements/tracing.txt requirements/tracing.txt
RUN --mount=type=cache,target=/root/.cache/uv \
    uv venv --quiet --python "$(command -v python)" /opt/tritonpose \
    && uv pip sync --python /opt/tritonpose/bin/python --require-hashes --only-binary=:all: --compile-bytecode \
    requirements/tracing.txt
# Only what serving needs goes into the package: training/, export/ and loadtest/ are not in this folder.
COPY pyproject.toml README.md LICENSE ./
COPY service service
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --python /opt/tritonpose/bin/python --no-deps --build-constraints requirements/tools.txt \
    --compile-bytecode .

FROM build AS loadtest-build
COPY requirements/loadtest.txt requirements/loadtest.txt
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --python /opt/tritonpose/bin/python --no-deps --require-hashes --only-binary=:all: \
    --compile-bytecode --requirement requirements/loadtest.txt

FROM base AS runtime
# Triton's own image has a user of this number too. Shared memory that one makes the other may open.
RUN groupadd --gid 1000 tritonpose \
    && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin tritonpose
ENV PATH=/opt/tritonpose/bin:$PATH
USER 1000:1000

# docker build --target loadtest -t tritonpose-loadtest .
FROM runtime AS loadtest
LABEL org.opencontainers.image.title="tritonpose load test" \
      org.opencontainers.image.licenses="Apache-2.0"
WORKDIR /loadtest
COPY --from=loadtest-build /opt/tritonpose /opt/tritonpose
COPY loadtest loadtest
# Locust puts the folder of its file on the path, not the one above.
ENV PYTHONPATH=/loadtest
ENTRYPOINT ["locust", "--locustfile", "loadtest/locustfile.py"]
CMD ["--help"]

FROM runtime AS gateway
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tritonpose" \
      org.opencontainers.image.description="Multi-person pose estimation: an image in, COCO poses out." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /opt/tritonpose /opt/tritonpose
# Works as it is with the embedded engine; mount another repository over it to serve others.
COPY model_repository /models
ENV TRITONPOSE_HOST=0.0.0.0 \
    TRITONPOSE_PORT=8000 \
    TRITONPOSE_REPOSITORY=/models
EXPOSE 8000
# SIGTERM: readiness goes off, the port stays open for TRITONPOSE_DRAIN_SECONDS, then requests in flight finish.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-m", "service.health"]
ENTRYPOINT ["tritonpose"]
CMD ["serve"]
