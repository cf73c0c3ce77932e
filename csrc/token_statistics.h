// Op A, vocabulary-parallel token statistics: what the CPU and the CUDA kernels take. Sizes and strides count elements.
#pragma once

#include "numbers.h"

namespace gipo {

constexpr int64_t kIgnoredTarget = -100;

// One rank's shard of the logits: `columns` real columns of each row, global ids first, first + 1, ...
struct LogitRows {
    const void* logits;
    DType dtype;
    int64_t rows, columns, stride;
    const int64_t* targets;  // [rows], global ids
    int64_t first;
    double temperature;
};

struct PartialRows {
    const void* partials;  // [ranks, 4, rows]: maximum, sum, weighted, target logit
    DType dtype;           // float32 or float64
    int64_t ranks, rows;
    const int64_t* targets;
    double temperature;
};

struct LogitGradient {
    int64_t width;           // columns to write: real ones, then padding (0)
    int64_t vocabulary;      // global ids at or beyond it have no gradient of their log-prob
    const void* statistics;  // [3, rows]: entropy, maximum, ln sum
    const void* upstream;    // [2, rows]: gradients of log-prob and entropy
    void* out;               // [rows, width], may be the logits themselves
    int64_t stride;
};

// partials: [4, rows].
void token_partials_cpu(const LogitRows& in, void* partials, int threads);
void token_partials_cuda(const LogitRows& in, void* partials, void* stream);

// merged: [4, rows]: log-prob, entropy, maximum, ln sum. Ranks are merged in order.
void token_merge_cpu(const PartialRows& in, void* merged, int threads);
void token_merge_cuda(const PartialRows& in, void* merged, void* stream);

void token_gradient_cpu(const LogitRows& in, const LogitGradient& gradient, int threads);
void token_gradient_cuda(const LogitRows& in, const LogitGradient& gradient, void* stream);

}  // namespace gipo
