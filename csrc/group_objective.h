// Op B, the group objective: what the CPU and the CUDA kernels take. A is float32, or float64 for float64 tokens.
#pragma once

#include "formulas.h"

namespace gipo {

// B sequences of at most T tokens, M groups. Contiguous.
struct ObjectiveRows {
    const void* logp;       // [B, T] in, of `dtype`
    const void* behaviour;  // [B, T] in, of `dtype`
    const void* reference;  // [B, T] in, of `dtype`
    const void* advantage;  // [B, T] in, of `dtype`
    DType dtype;
    int64_t batch, time, groups;  // B, T, M
    const int64_t* length;        // [B] in
    const void* probs;            // [B, M] in, A: p_ig
    const void* kl_weight;        // [B] in, A
    ObjectiveOptions options;
};

// Planes of the [kSequenceFields, B] buffer `sequences`, in the order of GroupObjective in gipo_mc/ops/results.py.
enum SequenceField : int { kSignal, kSurrogate, kKl, kClipped, kRatioMax, kBehaviourKl, kSequenceFields };

// Planes of M numbers each in the [kGroupFields M + 1] buffer `sums`: sum_i p_ig and sum_i p_ig s_i. The number after
// them is sum_i kl_weight_i kl_i. Each sum in the order of i.
enum GroupField : int { kMass, kWeighted, kGroupFields };

// behaviour_signal: [B] in, A. sequences: [kSequenceFields, B] out, A. sums: [kGroupFields M + 1] out, A.
void group_objective_cpu(const ObjectiveRows& in, const void* behaviour_signal, void* sequences, void* sums,
                         int threads);
void group_objective_cuda(const ObjectiveRows& in, const void* behaviour_signal, void* sequences, void* sums,
                          CudaStream stream);

// What a gradient is given of each output, A. Null where an output was not used: its gradient is 0.
struct ObjectiveUpstream {
    const void* signal;       // [B] in
    const void* surrogate;    // [B] in
    const void* kl;           // [B] in
    const void* mass;         // [M] in
    const void* weighted;     // [M] in
    const void* weighted_kl;  // [1] in
};

struct ObjectiveGradient {
    const void* signal;  // [B] in, A: s_i of the forward pass
    ObjectiveUpstream of;
    void* logp_out;   // [B, T] out, of the tokens' type
    void* probs_out;  // [B, M] out, A
};

// Element i of an upstream gradient.
template <class A>
GIPO_HD A upstream_at(const void* gradient, int64_t i) {
    return gradient == nullptr ? A(0) : static_cast<const A*>(gradient)[i];
}

void group_objective_gradient_cpu(const ObjectiveRows& in, const ObjectiveGradient& gradient, int threads);
void group_objective_gradient_cuda(const ObjectiveRows& in, const ObjectiveGradient& gradient, CudaStream stream);

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
