// What the CUDA kernels share: one block of 256 threads a row, reductions and scans in an order that never changes,
// 16-byte loads, launches whose failure is an exception. No atomics anywhere.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "formulas.h"

namespace gipo {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

// Blocks of a launch over rows; a kernel steps through its rows by gridDim.x.
inline unsigned blocks_for(int64_t rows) {
    return static_cast<unsigned>(std::min<int64_t>(rows, 0x7fffffff));
}

// Puts `kernel` on `stream`; an exception where it cannot start.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), unsigned blocks, void* stream,
            const Arguments&... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(kThreads);
    config.stream = static_cast<cudaStream_t>(stream);
    const cudaError_t status = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
    if (status == cudaSuccess) return;
    cudaGetLastError();  // the failure is reported here, not by whoever asks next
    throw std::runtime_error(std::string("gipo_mc._C: the CUDA kernel of ") + name + " did not start: " +
                             cudaGetErrorString(status) + ". build_info() lists the architectures that were built.");
}

// Calls `visit` with a value of the element type; the CUDA kernels know float32, bfloat16 and float16.
template <class Visit>
void with_cuda_type(DType dtype, Visit&& visit) {
    switch (dtype) {
        case DType::kFloat32:
            return visit(float{});
        case DType::kBFloat16:
            return visit(BFloat16{});
        case DType::kFloat16:
            return visit(Float16{});
        case DType::kFloat64:
            break;
    }
    throw std::invalid_argument("gipo_mc._C: this dtype has no CUDA kernel; use float32, bfloat16 or float16.");
}

__device__ __forceinline__ float from_lane(float x, int mask) {
    return __shfl_xor_sync(kAllLanes, x, mask);
}
__device__ __forceinline__ SoftmaxPart<float> from_lane(const SoftmaxPart<float>& x, int mask) {
    return {from_lane(x.maximum, mask), from_lane(x.sum, mask), from_lane(x.weighted, mask)};
}

// The combination of all threads' values, known to all threads: butterfly inside a warp, of which lane 0's result
// counts, then warps in order. `shared`: kWarps values, free again when this returns.
template <class V, class Combine>
__device__ __forceinline__ V block_reduce(V value, V* shared, const Combine& combine) {
    for (int mask = kWarp / 2; mask > 0; mask /= 2) value = combine(value, from_lane(value, mask));
    if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
    __syncthreads();
    V total = shared[0];
    for (int warp = 1; warp < kWarps; ++warp) total = combine(total, shared[warp]);
    __syncthreads();
    return total;
}

__device__ __forceinline__ float block_sum(float value, float* shared) {
    return block_reduce(value, shared, [](float a, float b) { return a + b; });
}

// Elements of T in a 16-byte load.
template <class T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));

// Loaded through uint4: a struct of half-precision pairs would be loaded in pieces of 4 bytes.
template <class T>
__device__ __forceinline__ void load_pack(const T* from, float (&values)[kPack<T>]) {
    const uint4 quad = *reinterpret_cast<const uint4*>(from);
    const uint32_t words[4] = {quad.x, quad.y, quad.z, quad.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        if constexpr (sizeof(T) == 4) {
            values[k] = float_of(words[k]);
        } else {
            values[2 * k] = widen(T{static_cast<uint16_t>(words[k] & 0xffffu)});
            values[2 * k + 1] = widen(T{static_cast<uint16_t>(words[k] >> 16)});
        }
    }
}

template <class T>
__device__ __forceinline__ void store_pack(T* to, const float (&values)[kPack<T>]) {
    uint32_t words[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        if constexpr (sizeof(T) == 4) {
            words[k] = bits_of(values[k]);
        } else {
            words[k] = Narrow<T>::from(values[2 * k]).bits |
                       (static_cast<uint32_t>(Narrow<T>::from(values[2 * k + 1]).bits) << 16);
        }
    }
    *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
}

// A row cut into single elements up to a 16-byte boundary, 16-byte packs, and single elements at the end.
struct RowCut {
    int64_t head, packs, tail_start;
};
template <class T>
__device__ __forceinline__ RowCut cut_row(const T* row, int64_t columns) {
    const int64_t misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
    const int64_t to_boundary = misaligned == 0 ? 0 : kPack<T> - misaligned;
    const int64_t head = to_boundary < columns ? to_boundary : columns;
    const int64_t packs = (columns - head) / kPack<T>;
    return {head, packs, head + packs * kPack<T>};
}

}  // namespace gipo
