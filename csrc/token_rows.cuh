// Rows of logits, each by one block: what op A's kernels share with those that join it to op B. 16-byte loads and
// stores.
//
// Order of reduction: a thread takes every 256th pack of 16 bytes, keeps a running maximum and rescales its sums once
// a pack (one exponential a logit), then the butterfly of block_reduce. Two runs give the same bits.
#pragma once

#include "cuda_block.cuh"

namespace gipo {

using Part = SoftmaxPart<float>;

template <int count>
__device__ __forceinline__ void add_logits(Part& part, const float (&logits)[count], float inverse_temperature) {
    float maximum = part.maximum;
#pragma unroll
    for (int k = 0; k < count; ++k) maximum = logits[k] > maximum ? logits[k] : maximum;
    part = rescale(part, maximum, inverse_temperature);
#pragma unroll
    for (int k = 0; k < count; ++k) {
        const ExpTerm<float> term = exp_term(logits[k], maximum, inverse_temperature);
        part.sum += term.value;
        part.weighted += term.weighted;
    }
}

// Statistics of a row, known to all threads. `shared`: as block_reduce takes it.
template <class T>
__device__ __forceinline__ Part row_part(const T* row, int64_t columns, float inverse_temperature, Part* shared) {
    const RowCut cut = cut_row(row, columns);
    Part part = empty_part<float>();
    for (int64_t pack = threadIdx.x; pack < cut.packs; pack += kThreads) {
        float logits[kPack<T>];
        load_pack(row + cut.head + pack * kPack<T>, logits);
        add_logits(part, logits, inverse_temperature);
    }
    // Fewer than 16 single elements on either side.
    const int64_t tail = cut.tail_start + threadIdx.x;
    if (threadIdx.x < cut.head) add_logits(part, {widen(row[threadIdx.x])}, inverse_temperature);
    if (tail < columns) add_logits(part, {widen(row[tail])}, inverse_temperature);
    return block_reduce(
        part, shared, [inverse_temperature](const Part& a, const Part& b) { return merge(a, b, inverse_temperature); });
}

// Not __restrict__: `out` may be the logits. Every element is read and written by one thread.
template <class T>
__device__ __forceinline__ void gradient_row(const T* row, T* out, int64_t columns, int64_t target,
                                             const TokenSlope<float>& slope) {
    const auto single = [&](int64_t v) { out[v] = Narrow<T>::from(slope(widen(row[v]), v == target ? 1.0f : 0.0f)); };
    const bool packed = (reinterpret_cast<uintptr_t>(row) - reinterpret_cast<uintptr_t>(out)) % 16 == 0;
    if (!packed) {
        for (int64_t v = threadIdx.x; v < columns; v += kThreads) single(v);
        return;
    }
    const RowCut cut = cut_row(row, columns);
    for (int64_t pack = threadIdx.x; pack < cut.packs; pack += kThreads) {
        const int64_t start = cut.head + pack * kPack<T>;
        float values[kPack<T>];
        load_pack(row + start, values);
#pragma unroll
        for (int k = 0; k < kPack<T>; ++k) values[k] = slope(values[k], start + k == target ? 1.0f : 0.0f);
        store_pack(out + start, values);
    }
    if (threadIdx.x < cut.head) single(threadIdx.x);
    if (cut.tail_start + threadIdx.x < columns) single(cut.tail_start + threadIdx.x);
}

// The same, and 0 in the padded columns up to `width`; a row without gradient is not read.
template <class T>
__device__ __forceinline__ void gradient_padded_row(const T* row, T* out, int64_t columns, int64_t width,
                                                    int64_t target, const TokenSlope<float>& slope) {
    int64_t written = 0;
    if (!slope.zero()) {
        gradient_row(row, out, columns, target, slope);
        written = columns;
    }
    for (int64_t v = written + threadIdx.x; v < width; v += kThreads) out[v] = Narrow<T>::from(0.0f);
}

}  // namespace gipo
