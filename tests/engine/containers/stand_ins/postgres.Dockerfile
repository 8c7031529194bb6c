# What docker/compose.yaml needs of the official image of Postgres, from Debian's package.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN apt-get update && apt-get install --yes --no-install-recommends postgresql \
    && install --directory --owner postgres --mode 700 /var/lib/postgresql/data
COPY postgres.sh /
ENV PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/var/lib/postgresql/data
USER postgres
STOPSIGNAL SIGINT
ENTRYPOINT ["/bin/sh", "/postgres.sh"]
