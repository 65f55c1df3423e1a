#!/usr/bin/env bash
# Install a browser for the tests of the dashboard's pages, where that is possible.
# Without one those tests are skipped, which they say.
set -uo pipefail

for name in chromium chromium-browser google-chrome chrome; do
    ! command -v "$name" >/dev/null || exit 0
done
if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "No chromium, and no way to install it: tests in a browser are skipped."
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
install() {
    timeout 180 apt-get install --quiet=2 --yes --no-install-recommends chromium
}
(install || (timeout 60 apt-get update --quiet=2 && install)) >/dev/null 2>&1 ||
    echo "chromium could not be installed: tests in a browser are skipped."
