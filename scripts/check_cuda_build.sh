#!/usr/bin/env bash
# Gate on the CUDA kernels, for machines with nvcc and no GPU: csrc/*.cu compile for sm_80 and sm_90 with every warning
# an error, no kernel spills registers, and the PTX holds no atomics on floats and no float64 outside the totals.
#
#   scripts/check_cuda_build.sh            NVCC=/path/to/nvcc chooses the compiler
case "${1:-}" in -h | --help) sed -n "2,5s/^# \{0,1\}//p" "$0"; exit 0 ;; esac
set -euo pipefail
cd "$(dirname "$0")/.."
nvcc="${NVCC:-nvcc}"
command -v "$nvcc" >/dev/null || { echo "There is no $nvcc: install the CUDA toolkit or set NVCC." >&2; exit 2; }
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
flags=(-std=c++17 -O3 -Werror=all-warnings -Xcompiler=-Wall,-Wextra,-Werror)
failed=0

for source in csrc/*.cu; do
    name="$(basename "$source" .cu)"
    log="$work/$name.log"
    if ! "$nvcc" "${flags[@]}" --threads=2 -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 \
        -Xptxas=-v,-warn-spills -c "$source" -o "$work/$name.o" 2>"$log"; then
        cat "$log" >&2
        echo "$name: does not compile without warnings." >&2
        exit 1
    fi
    kernels="$(grep -c 'bytes spill stores' "$log" || true)"
    spilled="$(grep 'bytes spill stores' "$log" | grep -vc ' 0 bytes spill stores, 0 bytes spill loads' || true)"
    if [ "$kernels" -eq 0 ] || [ "$spilled" -ne 0 ]; then
        cat "$log" >&2
        echo "$name: $spilled of $kernels kernels spill registers." >&2
        failed=1
    fi
    registers="$(grep -o 'Used [0-9]* registers' "$log" | sort -k2 -n | tail -1 | cut -d' ' -f2)"
    echo "$name: $kernels kernels on sm_80 and sm_90, $spilled spill registers, at most $registers registers"
    "$nvcc" -std=c++17 -O3 -arch=compute_80 -ptx "$source" -o "$work/$name.ptx"
    if grep -nE '\b(atom|red)\.[a-z.]*\.(f16|f16x2|bf16|bf16x2|f32|f64)\b' "$work/$name.ptx" >&2; then
        echo "$name: atomics on floats, whose order is not fixed: reduce in a fixed order." >&2
        failed=1
    fi
    # Only the totals of op C over all rows are kept in float64.
    if awk '/\.entry/ { kernel = $0 } /\.f64/ && !/\.reg|\.param/ && kernel !~ /totals_kernel/ { print FILENAME ": " kernel; found = 1; exit }
            END { exit !found }' "$work/$name.ptx" >&2; then
        echo "$name: float64 in a hot kernel." >&2
        failed=1
    fi
    grep -qE 'ld\.(global\.)?(nc\.)?v4' "$work/$name.ptx" || [ "$name" != token_statistics ] || {
        echo "$name: no 16-byte loads in the PTX." >&2
        failed=1
    }
done
[ "$failed" -eq 0 ] && echo "The CUDA kernels pass."
exit "$failed"
