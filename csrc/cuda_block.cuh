// What the CUDA kernels share: blocks of 256 threads, reductions in an order that never changes, 16-byte loads and
// stores, launches whose failure is an exception. No atomics on floats anywhere.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "formulas.h"

namespace gipo {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

// Blocks that the registers of a kernel over rows must leave room for on a multiprocessor: 1024 threads, 64 registers.
constexpr int kResidentBlocks = 4;

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

// ---- Reductions over a block ---------------------------------------------------------------------------------------

__device__ __forceinline__ float from_lane(float x, int mask) {
    return __shfl_xor_sync(kAllLanes, x, mask);
}

// The combination of all threads' values, known to all threads: butterfly inside a warp, of which lane 0's result
// counts, then warps in order. `shared`: kWarps values, free again when this returns.
template <class V, class Combine>
__device__ __forceinline__ V block_reduce(V value, V* shared, const Combine& combine) {
    for (int mask = kWarp / 2; mask > 0; mask /= 2) value = combine(value, from_lane(value, mask));
    if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
    __syncthreads();
    V total = shared[0];
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) total = combine(total, shared[warp]);
    __syncthreads();
    return total;
}

__device__ __forceinline__ float block_sum(float value, float* shared) {
    return block_reduce(value, shared, [](float a, float b) { return a + b; });
}

// Several values at the price of one pair of barriers: thread k < count gets the combination of all threads'
// values[k], in the order of block_reduce; the other threads get nothing of use. combine(k, a, b) combines two values
// of field k. `shared` is free again when this returns.
template <int count, class Combine>
__device__ __forceinline__ float block_totals(float (&values)[count], float (&shared)[kWarps][count],
                                              const Combine& combine) {
#pragma unroll
    for (int k = 0; k < count; ++k) {
#pragma unroll
        for (int mask = kWarp / 2; mask > 0; mask /= 2) values[k] = combine(k, values[k], from_lane(values[k], mask));
        if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp][k] = values[k];
    }
    __syncthreads();
    const int field = static_cast<int>(threadIdx.x < count ? threadIdx.x : 0);
    float total = shared[0][field];
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) total = combine(field, total, shared[warp][field]);
    __syncthreads();
    return total;
}

// ---- Memory --------------------------------------------------------------------------------------------------------

// Elements of T in a 16-byte pack.
template <class T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));

// Packs are moved as uint4: a struct of half-precision pairs would be loaded in pieces of 4 bytes.

// Through the read-only path: never for memory that the same kernel writes.
template <class T>
__device__ __forceinline__ uint4 read_once(const T* from) {
    return __ldg(reinterpret_cast<const uint4*>(from));
}
// First to leave the caches: for what nobody reads again soon.
template <class T>
__device__ __forceinline__ uint4 read_last(const T* from) {
    return __ldcs(reinterpret_cast<const uint4*>(from));
}
// The same where `there`, else zeros: one instruction, where the compiler would branch around the load.
template <class T>
__device__ __forceinline__ uint4 read_last_if(bool there, const T* from) {
#if defined(__CUDA_ARCH__)
    uint4 pack = make_uint4(0, 0, 0, 0);
    asm("{ .reg .pred there; setp.ne.u32 there, %5, 0; @there ld.global.cs.v4.u32 {%0, %1, %2, %3}, [%4]; }"
        : "+r"(pack.x), "+r"(pack.y), "+r"(pack.z), "+r"(pack.w)
        : "l"(from), "r"(static_cast<uint32_t>(there)));
    return pack;
#else
    return there ? read_last(from) : make_uint4(0, 0, 0, 0);
#endif
}
template <class T>
__device__ __forceinline__ void write_pack(T* to, const uint4& pack) {
    __stwb(reinterpret_cast<uint4*>(to), pack);
}
template <class T>
__device__ __forceinline__ void write_last(T* to, const uint4& pack) {
    __stcs(reinterpret_cast<uint4*>(to), pack);
}

// The two 16-bit elements of a word as float, the lower first. Conversions that the device does in one instruction.
template <class T>
__device__ __forceinline__ void unpack_word(uint32_t word, float& low, float& high) {
    low = widen(T{static_cast<uint16_t>(word & 0xffffu)});
    high = widen(T{static_cast<uint16_t>(word >> 16)});
}
template <class T>
__device__ __forceinline__ uint32_t pack_word(float low, float high) {
    return Narrow<T>::from(low).bits | (static_cast<uint32_t>(Narrow<T>::from(high).bits) << 16);
}
#if defined(__CUDA_ARCH__)
template <>
__device__ __forceinline__ void unpack_word<BFloat16>(uint32_t word, float& low, float& high) {
    low = float_of(word << 16);
    high = float_of(word & 0xffff0000u);
}
template <>
__device__ __forceinline__ void unpack_word<Float16>(uint32_t word, float& low, float& high) {
    asm("{ .reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b; }"
        : "=f"(low), "=f"(high)
        : "r"(word));
}
template <>
__device__ __forceinline__ uint32_t pack_word<BFloat16>(float low, float high) {
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
template <>
__device__ __forceinline__ uint32_t pack_word<Float16>(float low, float high) {
    uint32_t word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
#endif

template <class T>
__device__ __forceinline__ void unpack(const uint4& pack, float* values) {
    const uint32_t words[4] = {pack.x, pack.y, pack.z, pack.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        if constexpr (sizeof(T) == 4) {
            values[k] = float_of(words[k]);
        } else {
            unpack_word<T>(words[k], values[2 * k], values[2 * k + 1]);
        }
    }
}

template <class T>
__device__ __forceinline__ uint4 packed(const float* values) {
    uint32_t words[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        if constexpr (sizeof(T) == 4) {
            words[k] = bits_of(values[k]);
        } else {
            words[k] = pack_word<T>(values[2 * k], values[2 * k + 1]);
        }
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

template <class T>
__device__ __forceinline__ uint4 pack_of(float value) {
    float values[kPack<T>];
#pragma unroll
    for (int k = 0; k < kPack<T>; ++k) values[k] = value;
    return packed<T>(values);
}

// A row cut into single elements up to a 16-byte boundary, 16-byte packs, and single elements at the end.
struct RowCut {
    int64_t head, packs, tail_start, columns;

    __device__ __forceinline__ int64_t singles() const { return head + columns - tail_start; }
    // Column of the n-th single element.
    __device__ __forceinline__ int64_t single(int64_t n) const { return n < head ? n : n - head + tail_start; }
    // The thread that comes to column v, where each starts at its own number and steps by kThreads.
    template <class T>
    __device__ __forceinline__ unsigned owner(int64_t v) const {
        if (v < head) return static_cast<unsigned>(v % kThreads);
        const int64_t n = v < tail_start ? (v - head) / kPack<T> : v - tail_start + head;
        return static_cast<unsigned>(n % kThreads);
    }
};

// The cut of `columns` elements of `row`. `others`: rows that are walked beside it; where they do not reach a 16-byte
// boundary together with it, all elements are single ones.
template <class T, class... Others>
__device__ __forceinline__ RowCut cut_row(const T* row, int64_t columns, const Others*... others) {
    const uintptr_t offset = reinterpret_cast<uintptr_t>(row) % 16;
    if (!((reinterpret_cast<uintptr_t>(others) % 16 == offset) && ...)) return {columns, 0, columns, columns};
    const int64_t misaligned = static_cast<int64_t>(offset / sizeof(T));
    const int64_t to_boundary = misaligned == 0 ? 0 : kPack<T> - misaligned;
    const int64_t head = to_boundary < columns ? to_boundary : columns;
    const int64_t packs = (columns - head) / kPack<T>;
    return {head, packs, head + packs * kPack<T>, columns};
}

// Zeros in `columns` elements of a row, by one block.
template <class T>
__device__ __forceinline__ void zero_row(T* out, int64_t columns) {
    const RowCut cut = cut_row(out, columns);
    for (int64_t pack = threadIdx.x; pack < cut.packs; pack += kThreads) {
        write_last(out + cut.head + pack * kPack<T>, make_uint4(0, 0, 0, 0));
    }
    if (threadIdx.x < cut.singles()) out[cut.single(threadIdx.x)] = Narrow<T>::from(0.0f);
}

}  // namespace gipo
