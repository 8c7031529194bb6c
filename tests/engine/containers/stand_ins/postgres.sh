set -eu
if [ ! -e "$PGDATA/PG_VERSION" ]; then
    passwords=$(mktemp)
    printf '%s\n' "$POSTGRES_PASSWORD" > "$passwords"
    # As the image that it stands in for: else the page of a parent, with an ellipsis, is refused.
    initdb --encoding UTF8 --username "$POSTGRES_USER" --pwfile "$passwords" --auth scram-sha-256
    rm "$passwords"
    echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
    # Nobody from outside before the database exists: the healthcheck asks through the socket, too.
    pg_ctl --wait start -o "-c listen_addresses='' -c unix_socket_directories=/tmp"
    PGPASSWORD=$POSTGRES_PASSWORD createdb --host /tmp --username "$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl --wait stop
fi
exec postgres -c listen_addresses='*'
