// The parts of a layer between its products of matrices, with gradients: what the CPU kernels take. Float32,
// contiguous; the CUDA side of training uses torch's kernels.
#pragma once

#include "numbers.h"

namespace gipo {

// x + other, and that sum divided by its root mean square, times a weight.
struct NormRows {
    const float* x;         // [N, H] in
    const float* other;     // [N, H] in, or null: nothing is added
    int64_t rows, columns;  // N, H
    const float* weight;    // [H] in
    double epsilon;         // added to the mean square
};

struct NormResults {
    float* sum;      // [N, H] out; null where nothing is added
    float* normed;   // [N, H] out
    float* inverse;  // [N] out: 1 / root mean square
};

constexpr int64_t kNormChunk = 64;  // rows whose shares of the weight's gradient are added up first

struct NormGradient {
    const float* normed;   // [N, H] in: the gradient of the normed rows
    const float* sum;      // [N, H] in: that of the sum, or null: none
    const float* inverse;  // [N] in
    float* x;              // [N, H] out: of both summands
    float* shares;         // [ceil(N / kNormChunk), H] to work in
    float* weight;         // [H] out
};

// x of `in` is the sum here, and `other` is not looked at.
void norm_rows_cpu(const NormRows& in, const NormResults& out, int threads);
void norm_rows_gradient_cpu(const NormRows& in, const NormGradient& gradient, int threads);

// silu(gate) up of rows that hold gate and up behind one another.
struct GatedRows {
    const float* both;      // [N, 2, F] in
    int64_t rows, columns;  // N, F
};

void gated_silu_cpu(const GatedRows& in, float* out, int threads);
// of_out: [N, F] in. of_both: [N, 2, F] out.
void gated_silu_gradient_cpu(const GatedRows& in, const float* of_out, float* of_both, int threads);

}  // namespace gipo
