// Op A, vocabulary-parallel token statistics: what the CPU and the CUDA kernels take. Sizes and strides count elements.
#pragma once

#include "formulas.h"

namespace gipo {

constexpr int64_t kIgnoredTarget = -100;

// Planes of the [kPartialFields, rows] buffer that a rank's shard of the logits is reduced to.
enum PartialField : int { kPartialMaximum, kPartialSum, kPartialWeighted, kPartialTarget, kPartialFields };

// Planes of the [kRowFields, rows] buffer that the gradient needs beside the entropy.
enum RowField : int { kRowMaximum, kRowLogSum, kRowFields };

// One rank's shard of the logits: `columns` real columns of each row, global ids first, first + 1, ...
struct LogitRows {
    const void* logits;  // [rows, columns] in, of `dtype`
    DType dtype;
    int64_t rows, columns, stride;
    const int64_t* targets;  // [rows] in, global ids
    int64_t first;
    double temperature;
};

struct PartialRows {
    const void* partials;  // [ranks, kPartialFields, rows] in
    DType dtype;           // float32 or float64
    int64_t ranks, rows;
    const int64_t* targets;  // [rows] in
    double temperature;
};

// float32 or float64: 16 bytes a token, which is all that an op needs besides the logits.
struct TokenResults {
    void* logp;        // [rows] out
    void* entropy;     // [rows] out
    void* statistics;  // [kRowFields, rows] out
};

struct LogitGradient {
    int64_t width;           // columns to write: real ones, then padding (0)
    int64_t vocabulary;      // global ids at or beyond it have no gradient of their log-prob
    const void* entropy;     // [rows] in
    const void* statistics;  // [kRowFields, rows] in
    const void* of_logp;     // [rows] in, gradient of the log-probs; null: 0
    const void* of_entropy;  // [rows] in, gradient of the entropies; null: 0
    void* out;               // [rows, width] out, of the logits' type; may be the logits themselves
    int64_t stride;
};

// Rows that are not split over ranks.
void token_statistics_cpu(const LogitRows& in, const TokenResults& out, int threads);
void token_statistics_cuda(const LogitRows& in, const TokenResults& out, CudaStream stream);

// partials: [kPartialFields, rows] out, float32 or float64.
void token_partials_cpu(const LogitRows& in, void* partials, int threads);
void token_partials_cuda(const LogitRows& in, void* partials, CudaStream stream);

// Ranks are merged in order.
void token_merge_cpu(const PartialRows& in, const TokenResults& out, int threads);
void token_merge_cuda(const PartialRows& in, const TokenResults& out, CudaStream stream);

void token_gradient_cpu(const LogitRows& in, const LogitGradient& gradient, int threads);
void token_gradient_cuda(const LogitRows& in, const LogitGradient& gradient, CudaStream stream);

// Writes what is known of token i.
template <class A>
GIPO_HD void put_results(const TokenResults& out, int64_t rows, int64_t i, const SoftmaxPart<A>& whole, A target_logit,
                         bool ignored, A inverse_temperature) {
    const TokenResult<A> token = token_result(whole, target_logit, inverse_temperature);
    static_cast<A*>(out.logp)[i] = ignored ? A(0) : token.logp;
    static_cast<A*>(out.entropy)[i] = ignored ? A(0) : token.entropy;
    static_cast<A*>(out.statistics)[kRowMaximum * rows + i] = whole.maximum;
    static_cast<A*>(out.statistics)[kRowLogSum * rows + i] = token.log_sum;
}

// What the gradient of row i needs.
template <class A>
GIPO_HD TokenSlope<A> slope_of_row(const LogitRows& in, const LogitGradient& gradient, int64_t i,
                                   A inverse_temperature) {
    const A* statistics = static_cast<const A*>(gradient.statistics);
    const A* of_logp = static_cast<const A*>(gradient.of_logp);
    const A* of_entropy = static_cast<const A*>(gradient.of_entropy);
    const int64_t id = in.targets[i];
    const bool known = id >= 0 && id < gradient.vocabulary && of_logp != nullptr;
    const bool counted = id != kIgnoredTarget && of_entropy != nullptr;
    return {statistics[kRowMaximum * in.rows + i],
            statistics[kRowLogSum * in.rows + i],
            static_cast<const A*>(gradient.entropy)[i],
            known ? of_logp[i] : A(0),
            counted ? of_entropy[i] : A(0),
            inverse_temperature};
}

}  // namespace gipo
