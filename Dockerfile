# syntax=docker/dockerfile:1

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
# The caches make the next build short and stay out of the image.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --profile dist --locked && \
    strip target/dist/gatekey -o /gatekey && \
    docker/rootfs.sh /gatekey /rootfs

# tests/suite/container.rs reads this stage, builds what it says without a registry, and starts the
# server in it.
FROM scratch
COPY --from=build /rootfs/ /
# The one place that may be written to, for SQLite and the secrets it makes; PostgreSQL needs none.
WORKDIR /var/lib/gatekey
# A number, so that Kubernetes can tell that it is not root. Any other user works as well.
USER 65532:65532
ENV GATEKEY_LISTEN=0.0.0.0:50051
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["/usr/local/bin/gatekey", "health"]
ENTRYPOINT ["/usr/local/bin/gatekey"]
