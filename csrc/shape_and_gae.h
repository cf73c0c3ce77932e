// Op C, reward shaping and GAE: what the CPU and the CUDA kernels take. A is float32, or float64 for float64 tokens.
#pragma once

#include "formulas.h"

namespace gipo {

// B responses of at most T tokens. Contiguous.
struct RewardRows {
    const void* behaviour;  // [B, T] in, of `dtype`
    const void* reference;  // [B, T] in, of `dtype`
    const void* values;     // [B, T] in, of `dtype`
    DType dtype;
    int64_t batch, time;    // B, T
    const void* reward;     // [B] in, A: given at the last token
    const int64_t* length;  // [B] in
    const void* kl_weight;  // [B] in, A
    double gamma, lambda;
    int estimator;
};

// Planes of the [kSumFields, B] buffer `row_sums`: tokens, and the sum and sum of squares of their advantages.
enum SumField : int { kTokenCount, kAdvantageSum, kAdvantageSquares, kSumFields };

struct ShapedRows {
    void* rewards;     // [B, T] out, A, 0 in the padding
    void* advantages;  // [B, T] out, A, 0 in the padding
    void* returns;     // [B, T] out, A, 0 in the padding
    void* kl;          // [B] out, A
    void* row_sums;    // [kSumFields, B] out, A
    double* totals;    // [kSumFields] out: the same over all rows, in row order
};

void shape_and_gae_cpu(const RewardRows& in, const ShapedRows& out, int threads);
void shape_and_gae_cuda(const RewardRows& in, const ShapedRows& out, CudaStream stream);

}  // namespace gipo
