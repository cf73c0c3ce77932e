// Test: pytest tests/ops/cuda with a GPU, pytest tests/csrc/test_csrc.py -k fibers on any CPU
//
// Op A on CUDA: one block a row, 16-byte loads and stores. Forward reads each logit once (2 bytes in bf16), the
// gradient reads and writes it once (4 bytes): 6 bytes a bf16 logit, the least possible with a reduction between the
// two. The rows and the order of their reduction are in token_rows.cuh.
#include "token_rows.cuh"
#include "token_statistics.h"

namespace gipo {
namespace {

// Calls visit(row number, its part, its target's logit) in one thread for each row.
template <class T, class Visit>
__device__ __forceinline__ void for_each_part(const LogitRows& in, float inverse_temperature, const Visit& visit) {
    __shared__ Part shared[kWarps];
    for (int64_t i = blockIdx.x; i < in.rows; i += gridDim.x) {
        const T* row = static_cast<const T*>(in.logits) + i * in.stride;
        const Part whole = row_part(row, in.columns, inverse_temperature, shared);
        if (threadIdx.x == 0) {
            const int64_t column = in.targets[i] - in.first;
            visit(i, whole, column >= 0 && column < in.columns ? widen(row[column]) : minus_infinity<float>());
        }
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    partials_kernel(LogitRows in, float inverse_temperature,
                    float* __restrict__ partials) {  // [kPartialFields, rows] out
    for_each_part<T>(in, inverse_temperature, [&](int64_t i, const Part& whole, float target_logit) {
        partials[kPartialMaximum * in.rows + i] = whole.maximum;
        partials[kPartialSum * in.rows + i] = whole.sum;
        partials[kPartialWeighted * in.rows + i] = whole.weighted;
        partials[kPartialTarget * in.rows + i] = target_logit;
    });
}

template <class T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    results_kernel(LogitRows in, TokenResults out, float inverse_temperature) {
    for_each_part<T>(in, inverse_temperature, [&](int64_t i, const Part& whole, float target_logit) {
        put_results(out, in.rows, i, whole, target_logit, in.targets[i] == kIgnoredTarget, inverse_temperature);
    });
}

__global__ void __launch_bounds__(kThreads) merge_kernel(PartialRows in, TokenResults out, float inverse_temperature) {
    const float* partials = static_cast<const float*>(in.partials);
    for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < in.rows;
         i += static_cast<int64_t>(gridDim.x) * kThreads) {
        Part whole = empty_part<float>();
        float target = minus_infinity<float>();
#pragma unroll 1
        for (int64_t rank = 0; rank < in.ranks; ++rank) {
            const float* part = partials + rank * kPartialFields * in.rows + i;
            whole = merge<float>(
                whole, {part[kPartialMaximum * in.rows], part[kPartialSum * in.rows], part[kPartialWeighted * in.rows]},
                inverse_temperature);
            const float rank_target = part[kPartialTarget * in.rows];
            target = rank_target > target ? rank_target : target;
        }
        put_results(out, in.rows, i, whole, target, in.targets[i] == kIgnoredTarget, inverse_temperature);
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    gradient_kernel(LogitRows in, LogitGradient gradient, float inverse_temperature) {
    for (int64_t block = blockIdx.x; block < in.rows; block += gridDim.x) {
        const int64_t i = in.rows - 1 - block;  // what forward read last may still be in the L2 cache
        const T* row = static_cast<const T*>(in.logits) + i * in.stride;
        T* out = static_cast<T*>(gradient.out) + i * gradient.stride;
        const TokenSlope<float> slope = slope_of_row<float>(in, gradient, i, inverse_temperature);
        gradient_padded_row(row, out, in.columns, gradient.width, in.targets[i] - in.first, slope);
    }
}

}  // namespace

void token_partials_cuda(const LogitRows& in, void* partials, CudaStream stream) {
    if (in.rows == 0) return;
    with_cuda_type(in.dtype, [&](auto type) {
        launch("token_partials", partials_kernel<decltype(type)>, blocks_for(in.rows), stream, in,
               static_cast<float>(1.0 / in.temperature), static_cast<float*>(partials));
    });
}

void token_statistics_cuda(const LogitRows& in, const TokenResults& out, CudaStream stream) {
    if (in.rows == 0) return;
    with_cuda_type(in.dtype, [&](auto type) {
        launch("token_statistics", results_kernel<decltype(type)>, blocks_for(in.rows), stream, in, out,
               static_cast<float>(1.0 / in.temperature));
    });
}

void token_merge_cuda(const PartialRows& in, const TokenResults& out, CudaStream stream) {
    if (in.rows == 0) return;
    launch("token_merge", merge_kernel, blocks_for((in.rows + kThreads - 1) / kThreads), stream, in, out,
           static_cast<float>(1.0 / in.temperature));
}

void token_gradient_cuda(const LogitRows& in, const LogitGradient& gradient, CudaStream stream) {
    if (in.rows == 0) return;
    with_cuda_type(in.dtype, [&](auto type) {
        launch("token_gradient", gradient_kernel<decltype(type)>, blocks_for(in.rows), stream, in, gradient,
               static_cast<float>(1.0 / in.temperature));
    });
}

}  // namespace gipo
