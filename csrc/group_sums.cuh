// The group sums of op B and their gradient, from what is known of each sequence: one block for all sums.
//
// Order of reduction: a thread takes every 256th sequence, then the butterfly of block_reduce.
#pragma once

#include "cuda_block.cuh"
#include "group_objective.h"

namespace gipo {

static __global__ void __launch_bounds__(kThreads)
    sums_kernel(ObjectiveRows in, const float* __restrict__ sequences, float* __restrict__ sums) {
    __shared__ float shared[kWarps];
    const float* probs = static_cast<const float*>(in.probs);
    const float* weight = static_cast<const float*>(in.weight);
    for (int64_t g = 0; g < in.groups; ++g) {
        float mass = 0, weighted = 0;
        for (int64_t i = threadIdx.x; i < in.batch; i += kThreads) {
            const float p = probs[i * in.groups + g];
            mass += p;
            weighted += p * sequences[i];
        }
        mass = block_sum(mass, shared);
        weighted = block_sum(weighted, shared);
        if (threadIdx.x == 0) {
            sums[g] = mass;
            sums[in.groups + g] = weighted;
        }
    }
    float kl = 0;
    for (int64_t i = threadIdx.x; i < in.batch; i += kThreads) kl += weight[i] * sequences[2 * in.batch + i];
    kl = block_sum(kl, shared);
    if (threadIdx.x == 0) sums[2 * in.groups] = kl;
}

// Gradient of the group probabilities of sequence i, by one block.
__device__ __forceinline__ void probs_gradient(const ObjectiveRows& in, const ObjectiveGradient& gradient, int64_t i) {
    const float* of_sums = static_cast<const float*>(gradient.of_sums);
    const float score = static_cast<const float*>(gradient.score)[i];
    float* probs_out = static_cast<float*>(gradient.probs_out) + i * in.groups;
    for (int64_t g = threadIdx.x; g < in.groups; g += kThreads) {
        probs_out[g] = of_sums[g] + of_sums[in.groups + g] * score;
    }
}

}  // namespace gipo
