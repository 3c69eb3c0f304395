#!/usr/bin/env bash
# Runs everything that has to hold, in order of cost; `test.sh unit` runs the Rust tests alone.
# The test runner's own summary and a plain `N passed, N failed` stand last. Status 0: everything holds.
set -uo pipefail
cd "$(dirname "$0")/.."

failed=()
log=$(mktemp)
trap 'rm -f "$log"' EXIT

stage() { # name, command…
  local name=$1 started=$SECONDS
  shift
  echo "== $name"
  if "$@"; then
    echo "== $name: ok, $((SECONDS - started)) s"
  else
    echo "== $name: FAILED, $((SECONDS - started)) s"
    failed+=("$name")
  fi
}

tests() {
  if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked --no-fail-fast 2>&1 | tee "$log" && cargo test --locked --doc
  else
    cargo test --locked --no-fail-fast 2>&1 | tee "$log"
  fi
}

# The runner's closing line, and its numbers in plain words: from nextest's summary, or summed over cargo's results.
closing_line() {
  grep -E '^ *Summary \[|^test result:' "$log" | tail -n 1
  awk '
    /^ *Summary \[/ { for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) p = $(i-1); if ($i ~ /^(failed|timed)/) f += $(i-1) } next }
    /^test result:/ { for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) p += $(i-1); if ($i ~ /^failed/) f += $(i-1) } }
    END { printf "%d passed, %d failed\n", p, f }
  ' "$log"
}

bash scripts/deps.sh || exit 1

if [ "${1:-all}" = unit ]; then
  stage "tests" tests
  closing_line
  [ ${#failed[@]} -eq 0 ]
  exit
fi

stage "environments" python3 scripts/venvs.py
stage "format" cargo fmt --all --check
stage "lints" cargo clippy --locked --all-targets -- -D warnings
stage "tests" tests
stage "documentation" env RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items --quiet
stage "clients" python3 scripts/demo.py clients
stage "clients of agno 2.5.6" python3 scripts/demo.py clients --agno 2.5.6
stage "tour" python3 scripts/demo.py tour
stage "training" python3 scripts/training.py try
stage "cluster" python3 examples/cluster/run.py --prove

if [ ${#failed[@]} -gt 0 ]; then
  echo "FAILED: ${failed[*]}"
fi
closing_line
[ ${#failed[@]} -eq 0 ]
