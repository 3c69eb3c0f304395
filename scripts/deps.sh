#!/usr/bin/env bash
# Makes sure that the system has what the commands need: installs it as root on Debian, else names it in one sentence.
set -euo pipefail

packages=()
have() { command -v "$1" >/dev/null 2>&1; }
have cc || packages+=(gcc libc6-dev)
have make || packages+=(make)
have cmake || packages+=(cmake)
have openssl || packages+=(openssl)
if ! have python3; then
  packages+=(python3 python3-venv)
elif ! python3 -c 'import ensurepip, venv' >/dev/null 2>&1; then
  packages+=(python3-venv)
fi

if [ ${#packages[@]} -gt 0 ]; then
  if have apt-get && [ "$(id -u)" = 0 ]; then
    echo "deps: installing ${packages[*]}" >&2
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${packages[@]}"; } >&2
  else
    echo "deps: these system packages are missing: ${packages[*]}; install them, for example with \`sudo apt-get install ${packages[*]}\`" >&2
    exit 1
  fi
fi

if ! have cargo; then
  echo "deps: cargo is missing; install a Rust toolchain from https://rustup.rs" >&2
  exit 1
fi
if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
  echo "deps: Python 3.10 or newer is needed, python3 is $(python3 -V 2>&1)" >&2
  exit 1
fi
