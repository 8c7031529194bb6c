# What docker/compose.yaml needs of the official image of Redis, from Debian's package.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN apt-get update && apt-get install --yes --no-install-recommends redis-server \
    && install --directory --owner redis /data
WORKDIR /data
USER redis
ENTRYPOINT ["/bin/sh", "-c", "exec \"$@\" --protected-mode no", "redis"]
CMD ["redis-server"]
