# How to run the image, and why each flag: docs/install.md.  To pin what it is built on:
#   docker build --build-arg BASE=python:3.11-slim-bookworm@sha256:... --build-arg GO=golang:1.24-bookworm@sha256:... .
ARG BASE=python:3.11-slim-bookworm
ARG GO=golang:1.24-bookworm

# Debian's wireguard-go is years old and carries a third of what this one does.
FROM ${GO} AS wireguard
WORKDIR /src
COPY deploy/wireguard-go ./
RUN CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags='-s -w' -o /wireguard-go golang.zx2c4.com/wireguard

FROM ${BASE} AS builder
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY deploy/requirements.txt ./
RUN pip wheel --no-cache-dir --require-hashes --requirement requirements.txt --wheel-dir /wheels \
    && pip install --no-cache-dir --upgrade --no-index --find-links /wheels setuptools cython
COPY . .
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM ${BASE}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends nftables wireguard-tools \
    && rm -rf /var/lib/apt/lists/*
RUN --mount=type=bind,from=builder,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links /wheels overlayd
COPY --from=wireguard /wireguard-go /usr/local/bin/wireguard-go
VOLUME /var/lib/overlayd
STOPSIGNAL SIGTERM
ENTRYPOINT ["overlayd"]
