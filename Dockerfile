# The one image: a tree that image/assemble made, and nothing else in it. `image/build` builds it, without a network.
FROM scratch
COPY . /
USER 65532:65532
ENTRYPOINT ["/usr/bin/realtime"]
LABEL org.opencontainers.image.title="realtime" org.opencontainers.image.licenses="Apache-2.0"
