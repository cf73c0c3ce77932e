// Test: pytest tests/ops/cuda with a GPU, pytest tests/csrc/test_csrc.py -k fibers on any CPU
//
// Op C on CUDA: one block a sequence, tiles of 256 tokens from the last to the first; A_t = delta_t + d A_{t+1} is an
// associative scan of the pairs (d, delta). 12 bytes read and 12 written a float32 token.
//
// Order of reduction: shuffles inside a warp, warps in order, tiles in order; the totals over rows in float64.
#include "cuda_block.cuh"
#include "shape_and_gae.h"

namespace gipo {
namespace {

// The map x -> offset + factor x: what a run of tokens does to the advantage that follows it.
struct Affine {
    float factor, offset;
};

__device__ __forceinline__ Affine then(const Affine& first, const Affine& second) {
    return {second.factor * first.factor, second.offset + second.factor * first.offset};
}

// Composition of the maps of threads 0..threadIdx.x, in that order, and of all threads. `shared`: kWarps maps, free
// again when this returns.
struct Scan {
    Affine here, whole;
};
__device__ __forceinline__ Scan block_scan(Affine value, Affine* shared) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    for (int distance = 1; distance < kWarp; distance *= 2) {
        const Affine before{__shfl_up_sync(kAllLanes, value.factor, distance),
                            __shfl_up_sync(kAllLanes, value.offset, distance)};
        if (lane >= distance) value = then(before, value);
    }
    if (lane == kWarp - 1) shared[warp] = value;
    __syncthreads();
    Affine whole{1.0f, 0.0f}, before = whole;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
        if (w == warp) before = whole;
        whole = then(whole, shared[w]);
    }
    __syncthreads();
    return {then(before, value), whole};
}

template <class T>
__global__ void __launch_bounds__(kThreads) shape_kernel(RewardRows in, ShapedRows out, float gamma, float decay) {
    __shared__ Affine maps[kWarps];
    __shared__ float shared[kWarps][kSumFields];
    for (int64_t i = blockIdx.x; i < in.batch; i += gridDim.x) {
        const int64_t length = bounded_length(in.length[i], in.time), start = i * in.time;
        const T* behaviour = static_cast<const T*>(in.behaviour) + start;
        const T* reference = static_cast<const T*>(in.reference) + start;
        const T* values = static_cast<const T*>(in.values) + start;
        float* rewards = static_cast<float*>(out.rewards) + start;
        float* advantages = static_cast<float*>(out.advantages) + start;
        float* returns = static_cast<float*>(out.returns) + start;
        const float reward = static_cast<const float*>(in.reward)[i];
        const float kl_weight = static_cast<const float*>(in.kl_weight)[i];

        for (float* row : {rewards, advantages, returns}) zero_row(row + length, in.time - length);
        float later = 0, totals[kSumFields] = {};  // with the KL in the place of the count, which needs no sum
        for (int64_t end = length; end > 0; end -= kThreads) {
            const int64_t t = end - 1 - threadIdx.x;  // may be negative in the last tile
            Affine map{1.0f, 0.0f};
            float value = 0, shaped = 0;
            if (t >= 0) {
                const float kl = kl_estimate(widen(behaviour[t]) - widen(reference[t]), in.estimator);
                const bool last = t == length - 1;
                value = widen(values[t]);
                shaped = shaped_reward(kl, kl_weight, reward, last);
                map = {decay, temporal_difference(shaped, value, last ? 0.0f : widen(values[t + 1]), gamma)};
                totals[kTokenCount] += kl;
            }
            const Scan scan = block_scan(map, maps);
            if (t >= 0) {
                const float result = scan.here.offset + scan.here.factor * later;
                rewards[t] = shaped;
                advantages[t] = result;
                returns[t] = result + value;
                totals[kAdvantageSum] += result;
                totals[kAdvantageSquares] += result * result;
            }
            later = scan.whole.offset + scan.whole.factor * later;
        }
        const float total = block_totals(totals, shared, [](int, float a, float b) { return a + b; });
        float* row_sums = static_cast<float*>(out.row_sums);
        if (threadIdx.x == kTokenCount) {
            static_cast<float*>(out.kl)[i] = total;
            row_sums[kTokenCount * in.batch + i] = static_cast<float>(length);
        } else if (threadIdx.x < kSumFields) {
            row_sums[threadIdx.x * in.batch + i] = total;
        }
    }
}

// One block a field. Not a hot kernel, so float64 costs nothing.
__global__ void __launch_bounds__(kThreads) totals_kernel(const float* __restrict__ row_sums,  // [kSumFields, B] in
                                                          int64_t batch,
                                                          double* __restrict__ totals) {  // [kSumFields] out
    __shared__ double shared[kThreads];
    double total = 0;
    for (int64_t i = threadIdx.x; i < batch; i += kThreads) total += row_sums[blockIdx.x * batch + i];
    shared[threadIdx.x] = total;
    __syncthreads();
    for (unsigned half = kThreads / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) totals[blockIdx.x] = shared[0];
}

}  // namespace

void shape_and_gae_cuda(const RewardRows& in, const ShapedRows& out, CudaStream stream) {
    if (in.batch > 0) {
        with_cuda_type(in.dtype, [&](auto type) {
            launch("shape_and_gae", shape_kernel<decltype(type)>, blocks_for(in.batch), stream, in, out,
                   static_cast<float>(in.gamma), static_cast<float>(in.gamma * in.lambda));
        });
    }
    launch("shape_and_gae", totals_kernel, kSumFields, stream, static_cast<const float*>(out.row_sums), in.batch,
           out.totals);
}

}  // namespace gipo
