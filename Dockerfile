# The web app alone: no PyTorch, no compiler, no root. docs/deploy.md says how to run it; compose.yaml adds PostgreSQL and a proxy.
FROM python:3.11-slim AS build
WORKDIR /srv/app
RUN python -m venv /opt/venv
# Dependencies first: they change less often than the code, and their layer is kept.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app/__init__.py app/
COPY ml/__init__.py ml/
RUN /opt/venv/bin/pip install --no-cache-dir --no-compile -c constraints.txt -e ".[postgresql]"

FROM python:3.11-slim
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    HOST=0.0.0.0 \
    PORT=8000 \
    LOG_FORMAT=json
# Without DATABASE_URL, answers are in /srv/app/data: mount a volume there.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin study \
    && mkdir -p /srv/app/data /srv/backups \
    && chown study /srv/app/data /srv/backups
WORKDIR /srv/app
COPY --from=build /opt/venv /opt/venv
COPY pyproject.toml LICENSE ./
COPY app app
COPY ml ml
COPY templates templates
COPY static static
COPY migrations migrations
COPY studies studies
COPY stimuli stimuli
COPY docs/results docs/results
USER 10001
EXPOSE 8000
VOLUME /srv/app/data
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ['PORT']}/healthz\", timeout=4)"]
STOPSIGNAL SIGTERM
CMD ["python", "-m", "app", "serve"]
