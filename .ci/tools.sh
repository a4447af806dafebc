#!/bin/sh
# What the tests need beyond pip: Chromium, Slurm, OpenSSH, rsync, two login shells that are not bash, g++ with Python's headers (Debian),
# and SkyPilot in an environment of its own.
# Can be repeated; a second time costs a second. SALAD_SKY_PYTHON names another SkyPilot's Python to the tests.
set -eu
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    missing=""
    for pair in chromium:chromium slurmctld:slurm-wlm munged:munge sshd:openssh-server ssh:openssh-client rsync:rsync \
            git:git g++:g++ fish:fish tcsh:tcsh; do
        PATH="$PATH:/usr/sbin" command -v "${pair%%:*}" > /dev/null || missing="$missing ${pair##*:}"
    done
    headers=$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')
    test -e "$headers/Python.h" || missing="$missing python3-dev"
    if [ -n "$missing" ]; then
        apt-get update -qq >&2
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >&2
    fi
fi
sky="${SALAD_SKY_VENV:-$HOME/.cache/salad/skypilot}"
if [ ! -e "$sky/.ready" ]; then
    python3 -m venv --clear "$sky" >&2
    "$sky/bin/pip" install --quiet "skypilot==0.14.1" >&2
    touch "$sky/.ready"
fi
