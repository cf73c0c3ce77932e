// Op B, the group objective: what the CPU and the CUDA kernels take. A is float32, or float64 for float64 tokens.
#pragma once

#include "formulas.h"

namespace gipo {

struct ObjectiveRows {
    const void *logp, *behaviour, *reference, *advantage;  // [batch, time], contiguous
    DType dtype;
    int64_t batch, time, groups;
    const int64_t* length;          // [batch]
    const void *probs, *kl_weight;  // A [batch, groups] and A [batch]: p_ig and the weight of each sequence's KL
    ObjectiveOptions options;
};

// behaviour_signal: A [batch]. sequences: A [6, batch]: signal, surrogate, kl, clipped tokens, largest ratio, behaviour
// KL. sums: A [2 groups + 1]: sum_i p_ig, sum_i p_ig s_i, sum_i kl_weight_i kl_i, each in the order of i.
void group_objective_cpu(const ObjectiveRows& in, const void* behaviour_signal, void* sequences, void* sums,
                         int threads);
void group_objective_cuda(const ObjectiveRows& in, const void* behaviour_signal, void* sequences, void* sums,
                          void* stream);

// What a gradient is given of each output. Null where an output was not used: its gradient is 0.
struct ObjectiveUpstream {
    const void *signal, *surrogate, *kl;        // A [batch]
    const void *mass, *weighted, *weighted_kl;  // A [groups], A [groups], A [1]
};

struct ObjectiveGradient {
    const void* signal;  // A [batch], s_i of the forward pass
    ObjectiveUpstream of;
    void *logp_out, *probs_out;  // [batch, time] of the tokens' type, A [batch, groups]
};

// Element i of an upstream gradient.
template <class A>
GIPO_HD A upstream_at(const void* gradient, int64_t i) {
    return gradient == nullptr ? A(0) : static_cast<const A*>(gradient)[i];
}

void group_objective_gradient_cpu(const ObjectiveRows& in, const ObjectiveGradient& gradient, int threads);
void group_objective_gradient_cuda(const ObjectiveRows& in, const ObjectiveGradient& gradient, void* stream);

// Coefficients of one sequence: d loss / d (sum of its token signals, surrogates, KLs).
template <class A>
struct SequenceSlope {
    A signal, surrogate, kl;
};

template <class A>
GIPO_HD SequenceSlope<A> sequence_slope(const ObjectiveRows& in, const ObjectiveGradient& gradient, int64_t i,
                                        int64_t length, const ObjectiveFormula<A>& formula) {
    const ObjectiveUpstream& of = gradient.of;
    const A* probs = static_cast<const A*>(in.probs) + i * in.groups;
    A signal = upstream_at<A>(of.signal, i);
    for (int64_t g = 0; g < in.groups; ++g) signal += upstream_at<A>(of.weighted, g) * probs[g];
    return {signal * formula.signal_share(length), upstream_at<A>(of.surrogate, i),
            upstream_at<A>(of.kl, i) + upstream_at<A>(of.weighted_kl, 0) * static_cast<const A*>(in.kl_weight)[i]};
}

// Gradient of p_ig.
template <class A>
GIPO_HD A probability_slope(const ObjectiveGradient& gradient, int64_t i, int64_t g) {
    return upstream_at<A>(gradient.of.mass, g) +
           upstream_at<A>(gradient.of.weighted, g) * static_cast<const A*>(gradient.signal)[i];
}

}  // namespace gipo
