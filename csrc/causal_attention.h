// Causal attention of whole sequences, rotary embedding included: what the CPU kernels take. Float32; the CUDA side of
// training uses torch's kernels. Sizes count elements; everything is contiguous.
#pragma once

#include "numbers.h"

namespace gipo {

// L positions of B sequences, and G key heads of `width` coordinates with `queries` query heads each.
struct Sequences {
    const float* qkv;  // rows [G, queries + 2, width] in: the queries of a key head, its key, its value
    int64_t length, batch, heads, queries, width;  // L, B, G
    int64_t next_position, next_sequence;  // rows from one to the next, of qkv and of what is seen: B and 1, or 1 and L
    const float* cos;                      // a row of width / 2 numbers for each position, `turn_stride` apart
    const float* sin;                      // the same
    int64_t turn_stride;
    double scale;       // of the products of queries and keys
    float* statistics;  // [2, B, G, queries, L]: of each query, largest exponent and 1 / sum of the weights
};

struct SeenGradient {
    const float* seen;  // rows [G, queries, width] in: of what `causal_attention_cpu` wrote
    float* qkv;         // rows [G, queries + 2, width] out
};

// seen: rows [G, queries, width] out. Statistics are written, too.
void causal_attention_cpu(const Sequences& in, float* seen, int threads);
// Statistics are read.
void causal_attention_gradient_cpu(const Sequences& in, const SeenGradient& gradient, int threads);

constexpr int kTile = 4;  // queries, and then keys, that share what is loaded

GIPO_HD int64_t rounded_up(int64_t count) {  // to whole registers of sixteen numbers
    return (count + 15) / 16 * 16;
}

// Floats that a sequence and key head is worked on in.
int64_t attention_room(const Sequences& in, bool gradient);

}  // namespace gipo
