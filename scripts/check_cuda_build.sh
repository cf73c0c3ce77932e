#!/usr/bin/env bash
# Gate on the CUDA kernels, for machines with nvcc and no GPU: csrc/*.cu compile for sm_80 and sm_90 with every warning
# an error; no kernel spills registers or takes too many; no atomics on floats; no float64 outside the totals; hot loops
# move 16 bytes at a time and take one exponential a logit.
#
#   scripts/check_cuda_build.sh            NVCC=/path/to/nvcc chooses the compiler
case "${1:-}" in -h | --help) sed -n "2,6s/^# \{0,1\}//p" "$0"; exit 0 ;; esac
set -euo pipefail
cd "$(dirname "$0")/.."
nvcc="${NVCC:-nvcc}"
command -v "$nvcc" >/dev/null || { echo "There is no $nvcc: install the CUDA toolkit or set NVCC." >&2; exit 2; }
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
# The device's side alone, which nvcc optimises in full whatever -O says: the host's has warnings as errors in the tests.
flags=(-std=c++17 -Werror=all-warnings -fatbin)
# Registers that leave room for four blocks of 256 threads on a multiprocessor of 65536: with four loads of 16 bytes a
# thread 64 KiB are in flight there, and an H200 needs about 25 KiB (4.8 TB/s times 700 ns over 132 multiprocessors). Op
# B's half-precision kernels hold eight tokens of four inputs a thread, 128 bytes in flight; three blocks do. Attention
# holds a slice of four queries and of their results, and 64 to 128 bytes in flight; two blocks do. Op D's second kernel
# runs one block a row, of which there are fewer than multiprocessors.
declare -A ceilings=([group_objective]=80 [paged_attention]=128 [sampling]=128)
failed=0

fail() {
    echo "$@" >&2
    failed=1
}

# The innermost loops of a PTX file that load 16 bytes at a time, a line each, at the first of the branches that lead
# back to their start: kernel, 16-byte loads, 16-byte stores,
# exponentials of base 2.
hot_loops() {
    awk '
        /\.entry/ { kernel = $NF; lines = found = 0; delete at }
        { text[++lines] = $0 }
        /^\$L/ { sub(":.*", "", $1); at[$1] = lines }
        /[ \t]bra/ {
            target = $NF; sub(";", "", target)
            if (!(target in at)) next
            loads = stores = powers = 0
            for (i = at[target]; i <= lines; ++i) {
                loads += text[i] ~ /ld\.global[a-zA-Z0-9_:.]*\.v4\./
                stores += text[i] ~ /st\.global[a-zA-Z0-9_:.]*\.v4\./
                powers += text[i] ~ /ex2\.approx/
            }
            inner = 1
            for (i = 1; i <= found; ++i) if (start[i] >= at[target]) inner = 0
            if (loads && inner) { start[++found] = at[target]; print kernel, loads, stores, powers }
        }' "$1"
}

# require_loop NAME KERNEL COUNT LOADS STORES POWERS: all COUNT instances of the kernel have one hot loop, with these
# numbers. LOADS may be a pattern. POWERS: how many exponentials a loop may have beside one a logit, or "any".
require_loop() {
    awk -v name="$1" -v kernel="$2" -v count="$3" -v loads="$4" -v stores="$5" -v more="$6" '
        $1 ~ "[0-9]" kernel "I" {
            ++seen
            logits = $2 * ($1 ~ kernel "If" ? 4 : 8)
            if ($2 ~ "^" loads "$" && $3 == stores && (more == "any" || $4 == logits + more)) next
            print name ": a hot loop of " $1 " has " $2 " loads and " $3 " stores of 16 bytes and " $4 " exponentials for " logits " numbers."
            wrong = 1
        }
        END {
            if (seen != count) { print name ": " kernel " has " seen + 0 " loops with 16-byte loads, " count " are expected."; wrong = 1 }
            exit wrong
        }' "$work/$1.loops" >&2 || failed=1
}

for source in csrc/*.cu; do
    name="$(basename "$source" .cu)"
    log="$work/$name.log"
    if ! "$nvcc" "${flags[@]}" --threads=2 -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 \
        -Xptxas=-v,-warn-spills --keep --keep-dir "$work" "$source" -o "$work/$name.fatbin" 2>"$log"; then
        cat "$log" >&2
        echo "$name: does not compile without warnings." >&2
        exit 1
    fi
    kernels="$(grep -c 'bytes spill stores' "$log" || true)"
    spilled="$(grep 'bytes spill stores' "$log" | grep -vc ' 0 bytes spill stores, 0 bytes spill loads' || true)"
    if [ "$kernels" -eq 0 ] || [ "$spilled" -ne 0 ]; then
        cat "$log" >&2
        fail "$name: $spilled of $kernels kernels spill registers."
    fi
    registers="$(grep -o 'Used [0-9]* registers' "$log" | cut -d' ' -f2 | sort -n | tail -1)"
    echo "$name: $kernels kernels on sm_80 and sm_90, $spilled spill registers, at most $registers registers"
    ceiling="${ceilings[$name]:-64}"
    [ "$registers" -le "$ceiling" ] || fail "$name: a kernel takes $registers registers, $ceiling are allowed: too few blocks would run at a time."
    ptx="$work/$name.compute_80.ptx"  # on its way to sm_80
    if grep -nE '\b(atom|red)\.[a-z.]*\.(f16|f16x2|bf16|bf16x2|f32|f64)\b' "$ptx" >&2; then
        fail "$name: atomics on floats, whose order is not fixed: reduce in a fixed order."
    fi
    # Only the totals of op C over all rows, and the few segments of a row of op D, are kept in float64.
    if awk '/\.entry/ { kernel = $0 } /\.f64/ && !/\.reg|\.param/ && kernel !~ /totals_kernel|draw_kernel/ { print FILENAME ": " kernel; found = 1; exit }
            END { exit !found }' "$ptx" >&2; then
        fail "$name: float64 in a hot kernel."
    fi
    hot_loops "$ptx" >"$work/$name.loops"
done

# Three element types each. A group of logits takes one exponential more, for the rescaling of the sums so far.
require_loop token_statistics partials_kernel 3 4 0 1
require_loop token_statistics gradient_kernel 3 4 4 0
require_loop token_objective chunks_kernel 3 4 0 1
require_loop token_objective gradient_kernel 3 4 4 0
require_loop sampling parts_kernel 3 4 0 1
require_loop group_objective sequences_kernel 3 4 0 any
require_loop group_objective objective_gradient_kernel 9 [34] 1 any  # 3 estimators; k1 needs no reference
require_loop paged_attention chunks_kernel 27 [48] 0 any  # 3 widths and 3 numbers of query heads
[ "$failed" -eq 0 ] && echo "The CUDA kernels pass."
exit "$failed"
