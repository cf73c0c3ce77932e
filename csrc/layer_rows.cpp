// RMSNorm with the sum before it, gated SiLU, and their gradients, on the CPU. One pass over a row brings it into the
// first-level cache, others read it there.
//
// Order of reduction: sums over a row in sixteen lanes, then lanes 8, 4, 2 and 1 apart; the gradient of the weight over
// 64 rows in their order, then over those sums in theirs. AVX2 and AVX-512 give the same bits.
#include "layer_rows.h"

#include "formulas.h"
#include "row_lanes.h"

namespace gipo {
namespace GIPO_ISA {
namespace {

void norm_rows(const NormRows& in, const NormResults& out, int64_t begin, int64_t end) {
    const int64_t width = in.columns;
    for (int64_t n = begin; n < end; ++n) {
        const float* row = in.x + n * width;
        Floats squares(0.0f);
        if (in.other == nullptr) {
            for (int64_t d = 0; d < width; d += kLanes) {
                const Floats x = numbers_at(row, d, width);
                squares = fused(x, x, squares);
            }
        } else {
            float* const sum = out.sum + n * width;
            for (int64_t d = 0; d < width; d += kLanes) {
                const Floats x = numbers_at(row, d, width) + numbers_at(in.other + n * width, d, width);
                put_numbers(sum, d, width, x);
                squares = fused(x, x, squares);
            }
            row = sum;
        }
        const float mean = total(squares) / static_cast<float>(width);
        const float inverse = 1.0f / __builtin_sqrtf(mean + static_cast<float>(in.epsilon));
        out.inverse[n] = inverse;
        for (int64_t d = 0; d < width; d += kLanes) {
            put_numbers(out.normed + n * width, d, width,
                        numbers_at(row, d, width) * in_all_lanes(inverse) * numbers_at(in.weight, d, width));
        }
    }
}

// Chunks `begin` to `end` of kNormChunk rows.
void norm_rows_gradient(const NormRows& in, const NormGradient& gradient, int64_t begin, int64_t end) {
    const int64_t width = in.columns;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
        float* const share = gradient.shares + chunk * width;
        memset(share, 0, width * sizeof(float));
        const int64_t first = chunk * kNormChunk, left = in.rows - first;
        for (int64_t n = first; n < first + (left < kNormChunk ? left : kNormChunk); ++n) {
            const float *const x = in.x + n * width, *const upstream = gradient.normed + n * width;
            const Floats inverse = in_all_lanes(gradient.inverse[n]);
            Floats products(0.0f);
            for (int64_t d = 0; d < width; d += kLanes) {
                const Floats of_normed = numbers_at(upstream, d, width) * (numbers_at(x, d, width) * inverse);
                put_numbers(share, d, width, numbers_at(share, d, width) + of_normed);
                products = fused(of_normed, numbers_at(in.weight, d, width), products);
            }
            const Floats mean = in_all_lanes(total(products) / static_cast<float>(width));
            for (int64_t d = 0; d < width; d += kLanes) {
                const Floats along = numbers_at(x, d, width) * inverse * mean;
                const Floats across = numbers_at(upstream, d, width) * numbers_at(in.weight, d, width) - along;
                const Floats other =
                    gradient.sum == nullptr ? Floats(0.0f) : numbers_at(gradient.sum + n * width, d, width);
                put_numbers(gradient.x + n * width, d, width, fused(across, inverse, other));
            }
        }
    }
}

GIPO_HD Floats sigmoid(const Floats& x) {
    return Floats(1.0f) / (Floats(1.0f) + exponential(-x));
}

void gated_silu(const GatedRows& in, float* out, int64_t begin, int64_t end) {
    const int64_t width = in.columns;
    for (int64_t n = begin; n < end; ++n) {
        const float* const gates = in.both + n * 2 * width;
        for (int64_t d = 0; d < width; d += kLanes) {
            const Floats gate = numbers_at(gates, d, width);
            put_numbers(out + n * width, d, width, gate * sigmoid(gate) * numbers_at(gates + width, d, width));
        }
    }
}

void gated_silu_gradient(const GatedRows& in, const float* of_out, float* of_both, int64_t begin, int64_t end) {
    const int64_t width = in.columns;
    for (int64_t n = begin; n < end; ++n) {
        const float* const gates = in.both + n * 2 * width;
        float* const of_gates = of_both + n * 2 * width;
        for (int64_t d = 0; d < width; d += kLanes) {
            const Floats gate = numbers_at(gates, d, width), part = sigmoid(gate);
            const Floats upstream = numbers_at(of_out + n * width, d, width);
            const Floats slope = part * fused(gate, Floats(1.0f) - part, Floats(1.0f));
            put_numbers(of_gates, d, width, upstream * numbers_at(gates + width, d, width) * slope);
            put_numbers(of_gates + width, d, width, upstream * (gate * part));
        }
    }
}

}  // namespace

extern const LayerKernels layer_rows = {norm_rows, norm_rows_gradient, gated_silu, gated_silu_gradient};

}  // namespace GIPO_ISA
}  // namespace gipo
