# The command `swr` in a container:
#
#   docker build --tag swr .
#   docker run --publish 8000:8000 swr proxy http://app:9000 --listen :8000
#   docker run --publish 8010:8010 --env SWR_REDIS_URL --env SWR_DASHBOARD_AUTH swr dashboard --listen :8010
#
# An app that has its own image needs none of this: it installs swr as any other package.
FROM python:3.14-slim AS build
COPY . /source
RUN python -m venv /opt/swr && /opt/swr/bin/pip install --no-cache-dir "/source[proxy,dashboard,encryption]"

FROM python:3.14-slim
COPY --from=build /opt/swr /opt/swr
# A user without rights, by number: Kubernetes compares it with runAsNonRoot.
USER 65534:65534
WORKDIR /app
ENV PATH=/opt/swr/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# SIGTERM drains: the loads under way get `drain_for` to end.
STOPSIGNAL SIGTERM
ENTRYPOINT ["swr"]
CMD ["--help"]
