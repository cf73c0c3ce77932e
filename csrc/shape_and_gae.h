// Op C, reward shaping and GAE: what the CPU and the CUDA kernels take. A is float32, or float64 for float64 tokens.
#pragma once

#include "formulas.h"

namespace gipo {

struct RewardRows {
    const void *behaviour, *reference, *values;  // [batch, time], contiguous
    DType dtype;
    int64_t batch, time;
    const void* reward;     // A [batch], given at the last token
    const int64_t* length;  // [batch]
    const void* kl_weight;  // A [batch]
    double gamma, lambda;
    int estimator;
};

struct ShapedRows {
    void *rewards, *advantages, *returns;  // A [batch, time], 0 in the padding
    void* kl;                              // A [batch]
    void* row_sums;                        // A [3, batch]: tokens, sum and sum of squares of the advantages
    double* totals;                        // [3]: the same over all rows, in row order
};

void shape_and_gae_cpu(const RewardRows& in, const ShapedRows& out, int threads);
void shape_and_gae_cuda(const RewardRows& in, const ShapedRows& out, void* stream);

}  // namespace gipo
