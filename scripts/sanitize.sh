#!/usr/bin/env bash
# Run the tests of the C++ files (tests/kernel) with AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for sanitizers in address,undefined thread; do
    "${CXX:-g++}" -std=c++17 -O0 -g1 -pthread -Wall -Wextra -Werror -fsanitize="$sanitizers" -fno-sanitize-recover=all \
        tests/kernel/driver.cpp src/prunus/native/*.cpp -o "$folder/driver"
    if ! "$folder/driver" >"$folder/output" 2>&1; then
        # With some Linux kernels' memory layout, this sanitizer cannot run.
        if [ "$sanitizers" = thread ] && grep -q "unexpected memory mapping" "$folder/output"; then
            echo "thread: cannot run on this system"
            continue
        fi
        cat "$folder/output"
        exit 1
    fi
    echo "$sanitizers: $(cat "$folder/output")"
done
