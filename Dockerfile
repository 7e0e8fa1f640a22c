# fqvit-opt in a container:
#
#     docker build -t fqvit-opt .
#     docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" fqvit-opt vit.onnx -o vit.q.onnx --calibrate photos/

FROM rust:1.91-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin fqvit-opt

FROM debian:bookworm-slim
COPY --from=build /src/target/release/fqvit-opt /usr/local/bin/fqvit-opt
COPY LICENSE LICENSE-APACHE LICENSE-MIT /usr/share/doc/fqvit-opt/
WORKDIR /work
# Nobody, by number: orchestrators that forbid root look for one.
USER 65534:65534
ENTRYPOINT ["fqvit-opt"]
CMD ["--help"]
