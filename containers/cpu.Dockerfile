# SPDX-License-Identifier: Apache-2.0
# The server on a machine without a GPU; docs/serving.md says how to build and run it.
FROM debian:12-slim AS build
# The release pins the versions.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends \
      ca-certificates g++ libnuma-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/hybridgen
ENV PATH=/opt/hybridgen/bin:$PATH
WORKDIR /src
COPY scripts/requirements.txt scripts/requirements-build.txt scripts/
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu \
    && pip install --no-cache-dir -r scripts/requirements.txt -r scripts/requirements-build.txt
COPY . .
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --no-build-isolation \
      -c scripts/requirements-test.txt ".[serve]"

FROM debian:12-slim
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends \
      ca-certificates libgomp1 libnuma1 python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 hybridgen
COPY --from=build /opt/hybridgen /opt/hybridgen
ENV PATH=/opt/hybridgen/bin:$PATH
USER 10001
WORKDIR /home/hybridgen
EXPOSE 8000
HEALTHCHECK --interval=30s --start-period=300s CMD ["python", "-c", \
    "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["hybridgen"]
CMD ["serve", "--help"]
