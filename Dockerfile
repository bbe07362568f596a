# To build on another base, such as one pinned by its digest: --build-arg PYTHON=python:3.13-slim@sha256:…
ARG PYTHON=docker.io/library/python:3.13-slim

FROM ${PYTHON} AS build
# Compiled files must be the same in every build.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0
COPY scripts/requirements.txt /
# To use another package index: --secret id=pip,src=pip.conf
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python -m venv --without-pip /venv && \
    pip --python /venv/bin/python install --no-cache-dir --no-compile --require-hashes -r /requirements.txt
COPY addons /app/addons
COPY scripts/tools /app/scripts/tools
# Compiled files with times would be stale in an image whose times are set, and Python would compile again at each start.
# All users may read the code and none may write it, whatever the modes in the checkout are.
# What a gate never runs goes: mitmweb's page, mitmproxy's console with its libraries, and the redirector of local mode.
RUN find /venv -depth -type d -name tests -exec rm -r {} + && \
    rm -r /venv/lib/python3*/site-packages/mitmproxy/tools/web/static /venv/bin/mitmproxy-linux-redirector \
        /venv/lib/python3*/site-packages/mitmproxy/tools/console /venv/lib/python3*/site-packages/urwid \
        /venv/lib/python3*/site-packages/wcwidth && \
    chmod -R u=rwX,go=rX /app && \
    /venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /venv/lib /app

FROM ${PYTHON}
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=https://github.com/OWNER/ollama-auth
LABEL org.opencontainers.image.title="ollama-auth" \
      org.opencontainers.image.description="An authenticating gateway for Ollama" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# A running container installs nothing. A volume at /data is for the ledger; a new one takes its owner from here.
RUN rm -rf /usr/local/bin/pip* /usr/local/lib/python3*/site-packages/pip* /usr/local/lib/python3*/ensurepip && \
    install -d -m 700 -o 65532 -g 65532 /data
COPY --from=build /venv /venv
COPY --from=build /app /app
# mitmproxy makes certificates in $HOME at each start. /dev/shm is writable even with --read-only.
ENV HOME=/dev/shm \
    OLLAMA_ENDPOINT=http://host.docker.internal:11434 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 8081
# Healthy means that the gate answers at all; without a key it answers 401. Ollama's health is not part of it.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s \
    CMD ["/venv/bin/python", "/app/scripts/tools", "entrypoint", "--healthy"]
ENTRYPOINT ["/venv/bin/python", "/app/scripts/tools", "entrypoint"]
