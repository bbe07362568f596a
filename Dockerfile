FROM python:3.13-slim AS build
COPY scripts/requirements.txt /
RUN python -m venv --without-pip /venv && \
    pip --python /venv/bin/python install --no-cache-dir --require-hashes -r /requirements.txt

FROM python:3.13-slim
LABEL org.opencontainers.image.title="ollama-auth" \
      org.opencontainers.image.description="An authenticating gateway for Ollama"
COPY --from=build /venv /venv
COPY addons /app/addons
COPY scripts/serve.py scripts/entrypoint.py scripts/mitmdump.py /app/scripts/
# mitmproxy makes its certificates at every start, in $HOME: /dev/shm can be written also under --read-only.
ENV HOME=/dev/shm \
    OLLAMA_ENDPOINT=http://host.docker.internal:11434 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 8081
# Any answer will do, and without a key that is a 401; only silence is ill.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s \
    CMD ["/venv/bin/python", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8081, timeout=4); c.request('HEAD', '/'); c.getresponse()"]
ENTRYPOINT ["/venv/bin/python", "/app/scripts/entrypoint.py"]
