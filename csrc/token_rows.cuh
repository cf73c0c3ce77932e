// Rows of logits, each by one block: what op A's kernels share with those that join it to op B. A row's statistics take
// one read, its gradient one read and one write, all in 16-byte packs.
//
// A thread starts kUnroll loads before it uses the first, so that a block has 16 KiB in flight; an H200 needs about 25
// KiB on each multiprocessor to keep its memory busy. Memory delivers a bf16 logit there in the time of 12 instructions
// of a thread: one ex2 and about nine others a logit are free, a second ex2 would not be.
//
// Order of reduction: a thread takes every 256th pack of 16 bytes, four at a time, rescales its sums once a group of
// four, and takes its single element last; then a butterfly inside a warp, of which lane 0's result counts, then warps
// in order. Two runs give the same bits.
#pragma once

#include "cuda_block.cuh"

namespace gipo {

using Part = SoftmaxPart<float>;

constexpr int kUnroll = 4;

struct WholeGroup {
    GIPO_HD constexpr operator int() const { return kUnroll; }
};

// Calls body(pack, count) for this thread's groups of packs: kUnroll of them, kThreads apart, of which the first
// `count` exist. Only a thread's last group may be incomplete, and has a `count` that the compiler does not know.
template <class Body>
__device__ __forceinline__ void over_packs(int64_t packs, const Body& body) {
    int64_t pack = threadIdx.x;
    for (; pack + (kUnroll - 1) * kThreads < packs; pack += kUnroll * kThreads) body(pack, WholeGroup());
    if (pack < packs) body(pack, static_cast<int>((packs - pack + kThreads - 1) / kThreads));
}

// ---- Statistics ----------------------------------------------------------------------------------------------------

// A thread's SoftmaxPart in units of log2: sum 2^x and sum 2^x x, x = (z - m) scale, scale = log2(e) / temperature.
struct BinaryPart {
    float maximum, sum, weighted;

    __device__ __forceinline__ void raise(float to, float scale) {
        if (maximum == to) return;
        const float shift = exponent_of(maximum, to, scale), factor = power_of_two(shift);
        weighted = factor * (weighted + sum * shift);
        sum *= factor;
        maximum = to;
    }

    // The maximum of all logits first, then one rescaling for all of them. A NaN is no maximum, but stays in the sums.
    template <int count>
    __device__ __forceinline__ void add(const float (&logits)[count], float scale) {
        float highest = maximum;
#pragma unroll
        for (int k = 0; k < count; ++k) highest = fmaxf(highest, logits[k]);
        raise(highest, scale);
#pragma unroll
        for (int k = 0; k < count; ++k) {
            const float x = exponent_of(logits[k], highest, scale), power = power_of_two(x);
            sum += power;
            weighted += power * x;
        }
    }
};

// The parts of all threads as one, known to all threads. `shared`: kWarps parts that nothing else uses meanwhile; two
// calls after each other may have the same, for a maximum is not written before all have left the barrier that follows
// its last reading, nor are the sums.
__device__ __forceinline__ Part whole_part(BinaryPart part, float scale, Part* shared) {
    float maximum = part.maximum;
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask /= 2) maximum = fmaxf(maximum, from_lane(maximum, mask));
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    if (lane == 0) shared[warp].maximum = maximum;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < kWarps; ++w) maximum = fmaxf(maximum, shared[w].maximum);
    part.raise(maximum, scale);
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
        part.sum += from_lane(part.sum, mask);
        part.weighted += from_lane(part.weighted, mask);
    }
    if (lane == 0) {
        shared[warp].sum = part.sum;
        shared[warp].weighted = part.weighted;
    }
    __syncthreads();
    Part whole{maximum, shared[0].sum, shared[0].weighted};
#pragma unroll
    for (int w = 1; w < kWarps; ++w) {
        whole.sum += shared[w].sum;
        whole.weighted += shared[w].weighted;
    }
    whole.weighted *= static_cast<float>(kLn2);
    return whole;
}

// Statistics of a row, known to all threads. `shared`: as whole_part takes it.
template <class T>
__device__ __forceinline__ Part row_part(const T* __restrict__ row, int64_t columns, float inverse_temperature,
                                         Part* shared) {
    const float scale = inverse_temperature * static_cast<float>(kLog2E);
    const RowCut cut = cut_row(row, columns);
    BinaryPart part{minus_infinity<float>(), 0.0f, 0.0f};
    over_packs(cut.packs, [&](int64_t pack, auto count) {
        const T* from = row + cut.head + pack * kPack<T>;
        uint4 packs[kUnroll];
        float logits[kUnroll * kPack<T>];
#pragma unroll
        for (int j = 0; j < kUnroll; ++j) {
            packs[j] = j < count ? read_once(from + j * kThreads * kPack<T>) : pack_of<T>(minus_infinity<float>());
        }
#pragma unroll
        for (int j = 0; j < kUnroll; ++j) unpack<T>(packs[j], logits + j * kPack<T>);
        part.add(logits, scale);
    });
    static_assert(2 * kPack<T> <= kThreads, "a thread has at most one single element");
    if (threadIdx.x < cut.singles()) part.add({widen(row[cut.single(threadIdx.x)])}, scale);
    return whole_part(part, scale, shared);
}

// ---- Gradient ------------------------------------------------------------------------------------------------------

// Not __restrict__: `out` may be the row. Every element is read and written by one thread, reads before writes; the
// thread that has the target's column writes it twice.
template <class T>
__device__ __forceinline__ void gradient_row(const T* row, T* out, int64_t columns, int64_t target,
                                             const TokenSlope<float>& slope) {
    const RowCut cut = cut_row(row, columns, out);
    const bool has_target = target >= 0 && target < columns && threadIdx.x == cut.template owner<T>(target);
    const float target_logit = has_target ? widen(row[target]) : 0.0f;
    over_packs(cut.packs, [&](int64_t pack, auto count) {
        constexpr int kStep = kThreads * kPack<T>;
        const int64_t start = cut.head + pack * kPack<T>;
        uint4 packs[kUnroll];
#pragma unroll
        for (int j = 0; j < kUnroll; ++j) {
            if (j < count) packs[j] = read_last(row + start + j * kStep);
        }
#pragma unroll
        for (int j = 0; j < kUnroll; ++j) {
            if (j >= count) continue;
            float values[kPack<T>];
            unpack<T>(packs[j], values);
#pragma unroll
            for (int k = 0; k < kPack<T>; ++k) values[k] = slope.beside_target(values[k]);
            write_last(out + start + j * kStep, packed<T>(values));
        }
    });
    for (int64_t n = threadIdx.x; n < cut.singles(); n += kThreads) {
        const int64_t v = cut.single(n);
        out[v] = Narrow<T>::from(slope.beside_target(widen(row[v])));
    }
    if (has_target) out[target] = Narrow<T>::from(slope.of_target(target_logit));
}

// The gradient of a row, and 0 in the padded columns up to `width`; a row without gradient is not read.
template <class T>
__device__ __forceinline__ void gradient_padded_row(const T* row, T* out, int64_t columns, int64_t width,
                                                    int64_t target, const TokenSlope<float>& slope) {
    int64_t written = 0;
    if (!slope.zero()) {
        gradient_row(row, out, columns, target, slope);
        written = columns;
    }
    if (written < width) zero_row(out + written, width - written);
}

}  // namespace gipo
