#!/usr/bin/env bash
# OpenStack Swift (Debian: swift-*) in the directory $1, with its S3 API at $2, for key $3, secret $4.
set -euo pipefail
directory=$1 address=${2#http://} key=$3 secret=$4
mkdir -p "$directory"/{etc,devices/disk}
chown -R swift "$directory"
mount --bind "$directory/etc" /etc/swift
cd /etc/swift

cat > swift.conf <<END
[swift-hash]
swift_hash_path_suffix = tests
swift_hash_path_prefix = tests
[storage-policy:0]
name = one
default = yes
END
for each in account:6202 container:6201 object:6200; do
    kind=${each%:*} port=${each#*:}
    if [ ! -e "$kind.ring.gz" ]; then
        swift-ring-builder "$kind.builder" create 4 1 1
        swift-ring-builder "$kind.builder" add \
            --region 1 --zone 1 --ip 127.0.0.1 --port "$port" --device disk --weight 1
        swift-ring-builder "$kind.builder" rebalance
    fi
    cat > "$kind-server.conf" <<END
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = $port
workers = 1
devices = $directory/devices
mount_check = false
[pipeline:main]
pipeline = $kind-server
[app:$kind-server]
use = egg:swift#$kind
END
    "swift-$kind-server" "$kind-server.conf" &
done
cat > proxy-server.conf <<END
[DEFAULT]
bind_ip = ${address%:*}
bind_port = ${address#*:}
workers = 1
[pipeline:main]
pipeline = catch_errors healthcheck cache s3api tempauth proxy-server
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:cache]
use = egg:swift#memcache
[filter:s3api]
use = egg:swift#s3api
[filter:tempauth]
use = egg:swift#tempauth
user_${key/:/_} = $secret .admin
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
END
exec swift-proxy-server proxy-server.conf
