// Op B on CUDA: one block a sequence, then one block for the sums over sequences (2 launches forward, 1 backward);
// 16 bytes a float32 token forward, 20 backward, whatever the number of groups.
//
// Order of reduction: a thread takes every 256th token (or sequence), then the butterfly of block_reduce.
#include "group_objective.h"
#include "group_sums.cuh"

namespace gipo {
namespace {

template <class T>
struct TokenPointers {
    const T *logp, *behaviour, *reference, *advantage;

    __device__ __forceinline__ TokenPointers(const ObjectiveRows& in, int64_t start)
        : logp(static_cast<const T*>(in.logp) + start),
          behaviour(static_cast<const T*>(in.behaviour) + start),
          reference(static_cast<const T*>(in.reference) + start),
          advantage(static_cast<const T*>(in.advantage) + start) {}
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    sequences_kernel(ObjectiveRows in, ObjectiveFormula<float> formula, const float* __restrict__ signal,
                     float* __restrict__ sequences) {
    __shared__ float shared[kWarps];
    for (int64_t i = blockIdx.x; i < in.batch; i += gridDim.x) {
        const int64_t length = bounded_length(in.length[i], in.time);
        const TokenPointers<T> at(in, i * in.time);
        float score = 0, surrogate = 0, kl = 0, clipped = 0, ratio = 0, behaviour_kl = 0;
        for (int64_t t = threadIdx.x; t < length; t += kThreads) {
            const ObjectiveToken<float> token = formula.token(widen(at.logp[t]), widen(at.behaviour[t]),
                                                              widen(at.reference[t]), widen(at.advantage[t]));
            score += token.score;
            surrogate += token.surrogate;
            kl += token.kl;
            clipped += token.clipped;
            behaviour_kl += token.behaviour_kl;
            ratio = larger(ratio, token.ratio);
        }
        score = block_sum(score, shared);
        surrogate = block_sum(surrogate, shared);
        kl = block_sum(kl, shared);
        clipped = block_sum(clipped, shared);
        behaviour_kl = block_sum(behaviour_kl, shared);
        ratio = block_reduce(ratio, shared, [](float a, float b) { return larger(a, b); });
        if (threadIdx.x == 0) {
            sequences[i] = formula.sequence_score(score, signal[i], length);
            sequences[in.batch + i] = surrogate;
            sequences[2 * in.batch + i] = kl;
            sequences[3 * in.batch + i] = clipped;
            sequences[4 * in.batch + i] = ratio;
            sequences[5 * in.batch + i] = behaviour_kl;
        }
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    objective_gradient_kernel(ObjectiveRows in, ObjectiveFormula<float> formula, ObjectiveGradient gradient) {
    for (int64_t i = blockIdx.x; i < in.batch; i += gridDim.x) {
        const int64_t length = bounded_length(in.length[i], in.time), start = i * in.time;
        const SequenceSlope<float> slope = sequence_slope<float>(in, gradient, i, length, formula);
        const TokenPointers<T> at(in, start);
        T* out = static_cast<T*>(gradient.logp_out) + start;
        for (int64_t t = threadIdx.x; t < in.time; t += kThreads) {
            float value = 0;
            if (t < length) {
                value = formula.slope(widen(at.logp[t]), widen(at.behaviour[t]), widen(at.reference[t]),
                                      widen(at.advantage[t]), slope.score, slope.surrogate, slope.kl);
            }
            out[t] = Narrow<T>::from(value);
        }
        probs_gradient(in, gradient, i);
    }
}

}  // namespace

void group_objective_cuda(const ObjectiveRows& in, const void* signal, void* sequences, void* sums, void* stream) {
    if (in.batch > 0) {
        with_cuda_type(in.dtype, [&](auto type) {
            launch("group_objective", sequences_kernel<decltype(type)>, blocks_for(in.batch), stream, in,
                   ObjectiveFormula<float>(in.options), static_cast<const float*>(signal),
                   static_cast<float*>(sequences));
        });
    }
    launch("group_objective", sums_kernel, 1, stream, in, static_cast<const float*>(sequences),
           static_cast<float*>(sums));
}

void group_objective_gradient_cuda(const ObjectiveRows& in, const ObjectiveGradient& gradient, void* stream) {
    if (in.batch == 0) return;
    with_cuda_type(in.dtype, [&](auto type) {
        launch("group_objective_gradient", objective_gradient_kernel<decltype(type)>, blocks_for(in.batch), stream, in,
               ObjectiveFormula<float>(in.options), gradient);
    });
}

}  // namespace gipo
