// Test: pytest tests/ops/cuda with a GPU, pytest tests/csrc/test_csrc.py -k fibers on any CPU
//
// Rotation and append on CUDA: one pass over the tokens' queries, keys and values, a warp for each head of a token.
// Each number is read and written once (4 bytes in bf16), the least there is, and 4 D bytes of sines and cosines a
// token come from the caches. 16-byte loads and stores where the rows allow it. Rounded once; nothing is summed.
#include "cuda_block.cuh"
#include "rotate_and_append.h"

namespace gipo {
namespace {

// `aligned`: all heads of all tokens, and their halves, start at 16-byte boundaries.
template <class T, bool aligned>
__device__ __forceinline__ void rotate_head(const T* from, T* to, int64_t half, const float* cos, const float* sin) {
    constexpr int kStep = aligned ? kPack<T> : 1;
    for (int64_t d = threadIdx.x % kWarp * kStep; d < half; d += kWarp * kStep) {
        float first[kStep], second[kStep];
        if constexpr (aligned) {
            unpack<T>(read_last(from + d), first);
            unpack<T>(read_last(from + half + d), second);
        } else {
            first[0] = widen(from[d]);
            second[0] = widen(from[half + d]);
        }
#pragma unroll
        for (int k = 0; k < kStep; ++k) {
            const Rotated<float> pair = rotated(first[k], second[k], cos[d + k], sin[d + k]);
            first[k] = pair.first;
            second[k] = pair.second;
        }
        if constexpr (aligned) {
            write_pack(to + d, packed<T>(first));
            write_pack(to + half + d, packed<T>(second));
        } else {
            to[d] = Narrow<T>::from(first[0]);
            to[half + d] = Narrow<T>::from(second[0]);
        }
    }
}

// from: null for zeros.
template <class T, bool aligned>
__device__ __forceinline__ void copy_head(const T* from, T* to, int64_t width) {
    constexpr int kStep = aligned ? kPack<T> : 1;
    for (int64_t d = threadIdx.x % kWarp * kStep; d < width; d += kWarp * kStep) {
        if constexpr (aligned) {
            write_pack(to + d, from == nullptr ? make_uint4(0, 0, 0, 0) : read_last(from + d));
        } else {
            to[d] = from == nullptr ? T{} : from[d];
        }
    }
}

template <class T, bool aligned>
__global__ void __launch_bounds__(kThreads, kResidentBlocks) append_kernel(NewTokens in, PagedCache cache) {
    const int64_t width = cache.width, half = width / 2, each = in.queries + 2, heads = cache.heads * each;
    for (int64_t item = blockIdx.x * static_cast<int64_t>(kWarps) + threadIdx.x / kWarp; item < in.rows * heads;
         item += static_cast<int64_t>(gridDim.x) * kWarps) {
        const int64_t n = item / heads, group = item % heads / each, j = item % each;
        const T* from = static_cast<const T*>(in.qkv) + n * in.stride + (group * each + j) * width;
        T* query = static_cast<T*>(in.query) + ((n * cache.heads + group) * in.queries + j) * width;
        const int64_t page = page_of_token(in, cache, n);
        if (page < 0) {
            if (j < in.queries) copy_head<T, aligned>(nullptr, query, width);
            continue;
        }
        const int64_t place = tile_of(cache, page, group) + in.position[n] % kPage * width;
        if (j > in.queries) {
            copy_head<T, aligned>(from, static_cast<T*>(cache.values) + place, width);
            continue;
        }
        rotate_head<T, aligned>(from, j < in.queries ? query : static_cast<T*>(cache.keys) + place, half,
                                in.cos + in.position[n] * half, in.sin + in.position[n] * half);
    }
}

template <class T>
bool packs_fit(const NewTokens& in, const PagedCache& cache) {
    const auto at_boundary = [](const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; };
    return cache.width / 2 % kPack<T> == 0 && in.stride % kPack<T> == 0 && at_boundary(in.qkv) &&
           at_boundary(in.query) && at_boundary(cache.keys) && at_boundary(cache.values);
}

}  // namespace

void rotate_and_append_cuda(const NewTokens& in, const PagedCache& cache, CudaStream stream) {
    if (in.rows == 0) return;
    const unsigned blocks = blocks_for((in.rows * cache.heads * (in.queries + 2) + kWarps - 1) / kWarps);
    with_cuda_type(cache.dtype, [&](auto type) {
        using T = decltype(type);
        launch("rotate_and_append", packs_fit<T>(in, cache) ? append_kernel<T, true> : append_kernel<T, false>, blocks,
               stream, in, cache);
    });
}

}  // namespace gipo
