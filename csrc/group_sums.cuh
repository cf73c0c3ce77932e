// The group sums of op B and their gradient, from what is known of each sequence: a block takes four groups, and reads
// the sequences once for all of them.
//
// Order of reduction: a thread takes every 256th sequence, then the butterfly of block_reduce.
#pragma once

#include "cuda_block.cuh"
#include "group_objective.h"

namespace gipo {

constexpr int kGroupTile = 4;

inline unsigned blocks_for_sums(int64_t groups) {
    return blocks_for((groups + kGroupTile - 1) / kGroupTile);
}

static __global__ void __launch_bounds__(kThreads)
    sums_kernel(ObjectiveRows in,
                const float* __restrict__ sequences,  // [kSequenceFields, B] in
                float* __restrict__ sums) {           // [kGroupFields M + 1] out
    constexpr int kLast = kGroupFields * kGroupTile;  // place of the weighted KL, after the planes of the tile
    __shared__ float shared[kWarps][kLast + 1];
    const float* __restrict__ probs = static_cast<const float*>(in.probs);
    const float* __restrict__ kl_weight = static_cast<const float*>(in.kl_weight);
    for (int64_t first = blockIdx.x * kGroupTile; first < in.groups; first += gridDim.x * kGroupTile) {
        const int count = static_cast<int>(in.groups - first < kGroupTile ? in.groups - first : kGroupTile);
        float values[kLast + 1] = {};
#pragma unroll 2
        for (int64_t i = threadIdx.x; i < in.batch; i += kThreads) {
            const float signal = sequences[kSignal * in.batch + i];
#pragma unroll
            for (int g = 0; g < kGroupTile; ++g) {
                const float p = g < count ? probs[i * in.groups + first + g] : 0.0f;
                values[kMass * kGroupTile + g] += p;
                values[kWeighted * kGroupTile + g] += p * signal;
            }
            if (first == 0) values[kLast] += kl_weight[i] * sequences[kKl * in.batch + i];
        }
        const float total = block_totals(values, shared, [](int, float a, float b) { return a + b; });
        const int field = static_cast<int>(threadIdx.x), g = field % kGroupTile;
        if (field < kLast && g < count) sums[field / kGroupTile * in.groups + first + g] = total;
        if (field == kLast && first == 0) sums[kGroupFields * in.groups] = total;
    }
}

// Gradient of the group probabilities of sequence i, by one block.
__device__ __forceinline__ void probs_gradient(const ObjectiveRows& in, const ObjectiveGradient& gradient, int64_t i) {
    float* probs_out = static_cast<float*>(gradient.probs_out) + i * in.groups;
    for (int64_t g = threadIdx.x; g < in.groups; g += kThreads) probs_out[g] = probability_slope<float>(gradient, i, g);
}

}  // namespace gipo
