# Sourced by deploy/lab and tests/run: sets $python to an interpreter of 3.11 or newer, installing Debian's if
# the machine has none. Everything after this point is Python.
python=
for candidate in /usr/bin/python3 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "error: Python 3.11 or newer is needed; install it, or run this as root where apt-get is to be had" >&2
        exit 1
    fi
    echo "installing python3 ..." >&2
    apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3 python3-venv >&2
    python=/usr/bin/python3
fi
