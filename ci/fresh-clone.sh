#!/usr/bin/env bash
# Run make demo and make test in a clone of the last commit, with an empty home and environment.
set -euo pipefail

top=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

git clone --quiet "$top" "$tmp/clone"
mkdir "$tmp/home" "$tmp/tmp"
# What names the package index and its certificates stays: without it nothing can be installed.
keep=()
for name in PATH LANG LC_ALL HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy \
    PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_CERT SSL_CERT_FILE; do
    [[ -z ${!name+set} ]] || keep+=("$name=${!name}")
done

cd "$tmp/clone"
for target in demo test; do
    echo "== make $target"
    env -i "${keep[@]}" HOME="$tmp/home" TMPDIR="$tmp/tmp" make "$target"
done
