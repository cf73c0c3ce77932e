// Op B, the group objective: what the CPU and the CUDA kernels take. A is float32, or float64 for float64 tokens.
#pragma once

#include "formulas.h"

namespace gipo {

struct ObjectiveRows {
    const void *logp, *behaviour, *reference, *advantage;  // [batch, time], contiguous
    DType dtype;
    int64_t batch, time, groups;
    const int64_t* length;       // [batch]
    const void *probs, *weight;  // A [batch, groups] and A [batch]: p_ig and the weight of each sequence's KL
    ObjectiveOptions options;
};

// signal: A [batch]. sequences: A [6, batch]: score, surrogate, kl, clipped tokens, largest ratio, behaviour KL.
// sums: A [2 groups + 1]: sum_i p_ig, sum_i p_ig s_i, sum_i weight_i kl_i, each in the order of i.
void group_objective_cpu(const ObjectiveRows& in, const void* signal, void* sequences, void* sums, int threads);
void group_objective_cuda(const ObjectiveRows& in, const void* signal, void* sequences, void* sums, void* stream);

struct ObjectiveGradient {
    const void* score;           // A [batch], s_i of the forward pass
    const void* of_sequences;    // A [3, batch]: gradients of score, surrogate, kl
    const void* of_sums;         // A [2 groups + 1]: gradients of the sums
    void *logp_out, *probs_out;  // [batch, time] of the tokens' type, A [batch, groups]
};

void group_objective_gradient_cpu(const ObjectiveRows& in, const ObjectiveGradient& gradient, int threads);
void group_objective_gradient_cuda(const ObjectiveRows& in, const ObjectiveGradient& gradient, void* stream);

// Coefficients of one sequence: d loss / d (sum of its token scores, surrogates, KLs).
template <class A>
struct SequenceSlope {
    A score, surrogate, kl;
};

template <class A>
GIPO_HD SequenceSlope<A> sequence_slope(const ObjectiveRows& in, const ObjectiveGradient& gradient, int64_t i,
                                        int64_t length, const ObjectiveFormula<A>& formula) {
    const A* of_sequences = static_cast<const A*>(gradient.of_sequences);
    const A* of_sums = static_cast<const A*>(gradient.of_sums);
    const A* probs = static_cast<const A*>(in.probs) + i * in.groups;
    A score = of_sequences[i];
    for (int64_t g = 0; g < in.groups; ++g) score += of_sums[in.groups + g] * probs[g];
    return {score * formula.score_share(length), of_sequences[in.batch + i],
            of_sequences[2 * in.batch + i] + of_sums[2 * in.groups] * static_cast<const A*>(in.weight)[i]};
}

}  // namespace gipo
