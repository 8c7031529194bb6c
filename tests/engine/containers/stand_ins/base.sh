#!/usr/bin/env bash
# Make the image $1: Debian with Python, for a machine that reaches Debian's packages and no
# registry of images. Run as root.
set -euo pipefail

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv \
    bookworm "$root" >&2
# The machine may trust more certificates than Debian does: those of its proxy.
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
rm -rf "$root"/var/cache/apt/archives/*.deb
tar -C "$root" -c . | docker import \
    --change "ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt" --change 'CMD ["bash"]' - "$1"
