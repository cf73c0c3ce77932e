// The CPU side of the ops of a layer: instruction set and threads are chosen here; the work is in causal_attention.cpp
// and layer_rows.cpp.
#include <vector>

#include "cpu.h"
#include "parallel.h"

namespace gipo {
namespace {

constexpr int kWorkOfAnExponential = 4;  // elements

// A room for `floats` numbers, which each thread keeps: the next call needs as much.
float* room_of(int64_t floats) {
    struct alignas(64) Line {
        float numbers[16];
    };
    thread_local std::vector<Line> room;
    const auto lines = static_cast<size_t>(floats / 16 + 1);
    if (room.size() < lines) room.resize(lines);
    return room.data()->numbers;
}

int64_t work_of(const Sequences& in) {
    return (in.queries + 1) * in.length * (in.length + 2 * in.width);
}

}  // namespace

int64_t attention_room(const Sequences& in, bool gradient) {
    const int64_t padded = rounded_up(in.width), positions = rounded_up(in.length);
    const int64_t rows = in.length * padded, columns = padded * positions, sums = kTile * padded;
    return gradient ? 5 * rows + 2 * columns + 2 * in.length * positions + sums
                    : 2 * rows + columns + kTile * positions + sums;
}

void causal_attention_cpu(const Sequences& in, float* seen, int threads) {
    const auto run = instruction_set().sequences->attend;
    const int64_t room = attention_room(in, false);
    parallel_rows(in.batch * in.heads, work_of(in), threads,
                  [&](int64_t begin, int64_t end) { run(in, seen, room_of(room), begin, end); });
}

void causal_attention_gradient_cpu(const Sequences& in, const SeenGradient& gradient, int threads) {
    const auto run = instruction_set().sequences->gradient;
    const int64_t room = attention_room(in, true);
    parallel_rows(in.batch * in.heads, 3 * work_of(in), threads,
                  [&](int64_t begin, int64_t end) { run(in, gradient, room_of(room), begin, end); });
}

void norm_rows_cpu(const NormRows& in, const NormResults& out, int threads) {
    const auto run = instruction_set().layers->norm;
    parallel_rows(in.rows, in.columns, threads, [&](int64_t begin, int64_t end) { run(in, out, begin, end); });
}

void norm_rows_gradient_cpu(const NormRows& in, const NormGradient& gradient, int threads) {
    const auto run = instruction_set().layers->norm_gradient;
    const int64_t chunks = (in.rows + kNormChunk - 1) / kNormChunk;
    parallel_rows(chunks, kNormChunk * in.columns, threads,
                  [&](int64_t begin, int64_t end) { run(in, gradient, begin, end); });
    for (int64_t d = 0; d < in.columns; ++d) gradient.weight[d] = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const float* const share = gradient.shares + chunk * in.columns;
        for (int64_t d = 0; d < in.columns; ++d) gradient.weight[d] += share[d];
    }
}

void gated_silu_cpu(const GatedRows& in, float* out, int threads) {
    const auto run = instruction_set().layers->gated;
    parallel_rows(in.rows, kWorkOfAnExponential * in.columns, threads,
                  [&](int64_t begin, int64_t end) { run(in, out, begin, end); });
}

void gated_silu_gradient_cpu(const GatedRows& in, const float* of_out, float* of_both, int threads) {
    const auto run = instruction_set().layers->gated_gradient;
    parallel_rows(in.rows, kWorkOfAnExponential * in.columns, threads,
                  [&](int64_t begin, int64_t end) { run(in, of_out, of_both, begin, end); });
}

}  // namespace gipo
