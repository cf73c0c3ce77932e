// Test: pytest tests/ops/cuda with a GPU, pytest tests/csrc/test_csrc.py -k fibers on any CPU
//
// Attention over the paged cache on CUDA: a warp for each row, key head and chunk of 128 positions, then one for each
// row and query head that merges the chunks. Keys and values are read once, 16 bytes at a time, for up to four query
// heads; further query heads of the key head are worked on by the warp beside, and find them in a cache. 4 D bytes a
// position and key head in bf16, the floor, and 8 D bytes a query head and chunk for what chunks are reduced to, which
// mostly stays in the L2 cache. The grid depends on shapes only.
//
// Order of reduction: a product is summed over eight coordinates in a thread, then over the threads of its key in a
// butterfly; every 32 / (threads of a key)-th position of a chunk is reduced by the same threads, in order, with a
// maximum that rises; these are merged in a butterfly, chunks in order.
#include "cuda_block.cuh"
#include "paged_attention.h"

namespace gipo {
namespace {

constexpr int kSlice = 8;  // coordinates of a thread

// The slice of a row that starts at coordinate d: zeros where the row is not there and behind its end.
template <class T, bool aligned>
struct Slice {
    static constexpr int kPacks = kSlice / kPack<T>;
    uint4 pack[aligned ? kPacks : 1];
    float number[aligned ? 1 : kSlice];

    __device__ __forceinline__ void load(bool there, const T* row, int d, int width) {
#pragma unroll
        for (int k = 0; k < (aligned ? kPacks : kSlice); ++k) {
            if constexpr (aligned) {
                pack[k] = read_last_if(there && d < width, row + d + k * kPack<T>);
            } else {
                number[k] = there && d + k < width ? widen(row[d + k]) : 0.0f;
            }
        }
    }
    __device__ __forceinline__ void get(float (&numbers)[kSlice]) const {
        if constexpr (aligned) {
#pragma unroll
            for (int k = 0; k < kPacks; ++k) unpack<T>(pack[k], numbers + k * kPack<T>);
        } else {
#pragma unroll
            for (int k = 0; k < kSlice; ++k) numbers[k] = number[k];
        }
    }
};

__device__ __forceinline__ float fold_exponent(float score, float maximum) {
    return power_of_two(exponent_of(score, maximum, 1.0f));
}

// A thread's share of a softmax over some positions.
struct Share {
    float maximum, sum, values[kSlice];

    // As seen from a larger maximum.
    __device__ __forceinline__ void raise(float highest) {
        const float factor = fold_exponent(maximum, highest);
        maximum = highest;
        sum *= factor;
#pragma unroll
        for (int k = 0; k < kSlice; ++k) values[k] *= factor;
    }
};

__device__ __forceinline__ float higher(float a, float b) {
    return b > a ? b : a;
}

// lanes: threads of a key, each with a slice of it. heads: query heads of a warp.
template <class T, int lanes, int heads, bool aligned>
__global__ void __launch_bounds__(kThreads, 2)
    chunks_kernel(QueryRows in, PagedCache cache, float scale, int64_t chunks,
                  float* __restrict__ parts) {  // [rows, heads, chunks, part_size] out
    constexpr int kKeys = kWarp / lanes;        // keys of a load
    // Loads of keys, and of values, that are on their way at a time.
    constexpr int kLoads = (heads > 2 ? 2 : 4) / (sizeof(T) == 4 ? 2 : 1);
    const int width = static_cast<int>(cache.width), lane = static_cast<int>(threadIdx.x) % kWarp;
    const int d = lane % lanes * kSlice;
    const int64_t item = blockIdx.x * static_cast<int64_t>(kWarps) + threadIdx.x / kWarp;
    const int64_t blocks = (in.queries + heads - 1) / heads, block = item % blocks;
    const int64_t chunk = item / blocks % chunks, head = item / blocks / chunks;  // key head, counted over all rows
    if (head >= in.rows * cache.heads) return;
    const int64_t n = head / cache.heads, left = in.length[n] - chunk * kChunk;
    if (left <= 0) return;
    const int count = static_cast<int>(left < kChunk ? left : kChunk);
    const int64_t first = head * in.queries + block * heads;        // query head, counted over all rows
    const int here = static_cast<int>(in.queries - block * heads);  // query heads that there are

    Slice<T, aligned> query[heads];  // as they are stored, which takes fewer registers
    Share share[heads];
#pragma unroll
    for (int h = 0; h < heads; ++h) {
        query[h].load(h < here, static_cast<const T*>(in.query) + (first + h) * width, d, width);
        share[h] = Share{minus_infinity<float>(), 0.0f, {}};
    }
    // Where the chunk's pages are looked up; a slot that is not there has none.
    const int64_t slot = in.slot[n], before = chunk * (kChunk / kPage);
    const bool known = slot >= 0 && slot < cache.slots;
    const int pages = known ? static_cast<int>(cache.slot_pages - before) : 0;
    const int32_t* table = known ? cache.table + slot * cache.table_stride + before : cache.table;
    const int64_t group = head % cache.heads;
    // All threads of a warp leave the loop together, which the compiler would not see without the vote.
#pragma unroll 1
    for (int step = 0; __any_sync(kAllLanes, step < count); step += kLoads * kKeys) {
        Slice<T, aligned> keys[kLoads], values[kLoads];
        float absent[kLoads];  // added to the score: -Inf where nothing is seen, NaN where the page is not there
#pragma unroll
        for (int u = 0; u < kLoads; ++u) {
            const int t = step + u * kKeys + lane / lanes;
            const bool listed = t < count && t / kPage < pages;
            const int64_t page = table[listed ? t / kPage : 0];
            const bool there = listed && page >= 0 && page < cache.pages;
            const int64_t row = tile_of(cache, page, group) + t % kPage * width;
            keys[u].load(there, static_cast<const T*>(cache.keys) + row, d, width);
            values[u].load(there, static_cast<const T*>(cache.values) + row, d, width);
            absent[u] = t >= count ? minus_infinity<float>() : there ? 0.0f : nanf("");
        }
        float score[kLoads][heads];
#pragma unroll
        for (int h = 0; h < heads; ++h) {
            float asked[kSlice];
            query[h].get(asked);
#pragma unroll
            for (int u = 0; u < kLoads; ++u) {
                float numbers[kSlice], total = 0.0f;
                keys[u].get(numbers);
#pragma unroll
                for (int k = 0; k < kSlice; ++k) total = fused(asked[k], numbers[k], total);
#pragma unroll
                for (int mask = lanes / 2; mask > 0; mask /= 2) total += from_lane(total, mask);
                score[u][h] = fused(total, scale, absent[u]);
            }
        }
#pragma unroll
        for (int h = 0; h < heads; ++h) {
            float highest = share[h].maximum;
#pragma unroll
            for (int u = 0; u < kLoads; ++u) highest = higher(highest, score[u][h]);
            share[h].raise(highest);
#pragma unroll
            for (int u = 0; u < kLoads; ++u) {
                score[u][h] = fold_exponent(score[u][h], highest);
                share[h].sum += score[u][h];
            }
        }
#pragma unroll
        for (int u = 0; u < kLoads; ++u) {
            float numbers[kSlice];
            values[u].get(numbers);
#pragma unroll
            for (int h = 0; h < heads; ++h) {
#pragma unroll
                for (int k = 0; k < kSlice; ++k) {
                    share[h].values[k] = fused(score[u][h], numbers[k], share[h].values[k]);
                }
            }
        }
    }
#pragma unroll
    for (int h = 0; h < heads; ++h) {
#pragma unroll
        for (int mask = lanes; mask < kWarp; mask *= 2) {
            share[h].raise(higher(share[h].maximum, from_lane(share[h].maximum, mask)));
            share[h].sum += from_lane(share[h].sum, mask);
#pragma unroll
            for (int k = 0; k < kSlice; ++k) share[h].values[k] += from_lane(share[h].values[k], mask);
        }
    }
    if (lane >= lanes || d >= width) return;
#pragma unroll
    for (int h = 0; h < heads; ++h) {
        if (h >= here) continue;
        float* part = parts + ((first + h) * chunks + chunk) * part_size(cache);
        if (d == 0) {
            part[part_maximum(cache)] = share[h].maximum;
            part[part_maximum(cache) + 1] = share[h].sum;
        }
        write_pack(part + d, packed<float>(share[h].values));
        write_pack(part + d + kPack<float>, packed<float>(share[h].values + kPack<float>));
    }
}

template <class T, bool aligned>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    merge_kernel(QueryRows in, PagedCache cache, int64_t chunks,
                 const float* __restrict__ parts) {  // [rows, heads, chunks, part_size] in
    const int64_t width = cache.width, heads = cache.heads * in.queries, d = threadIdx.x % kWarp * kSlice;
    for (int64_t item = blockIdx.x * static_cast<int64_t>(kWarps) + threadIdx.x / kWarp; item < in.rows * heads;
         item += static_cast<int64_t>(gridDim.x) * kWarps) {
        const int64_t length = in.length[item / heads];
        const bool possible = length >= 0 && length <= cache.slot_pages * kPage;
        const int64_t seen = possible ? chunks_of(length) : 0;
        const float* part = parts + item * chunks * part_size(cache);
        float highest = minus_infinity<float>(), sum = 0.0f, values[kSlice] = {};
#pragma unroll 4
        for (int64_t c = 0; c < seen; ++c) highest = higher(highest, part[c * part_size(cache) + part_maximum(cache)]);
        if (d >= width) continue;
#pragma unroll 2
        for (int64_t c = 0; c < seen; ++c, part += part_size(cache)) {
            const float factor = fold_exponent(part[part_maximum(cache)], highest);
            float numbers[kSlice];
            unpack<float>(read_last(part + d), numbers);
            unpack<float>(read_last(part + d + kPack<float>), numbers + kPack<float>);
            sum = fused(part[part_maximum(cache) + 1], factor, sum);
#pragma unroll
            for (int k = 0; k < kSlice; ++k) values[k] = fused(numbers[k], factor, values[k]);
        }
        const float inverse = length == 0 ? 0.0f : possible ? 1.0f / sum : nanf("");
        T* out = static_cast<T*>(in.out) + item * width + d;
#pragma unroll
        for (int k = 0; k < kSlice; ++k) {
            values[k] *= inverse;
            if (!aligned && d + k < width) out[k] = Narrow<T>::from(values[k]);
        }
        if constexpr (aligned) {
#pragma unroll
            for (int k = 0; k < kSlice; k += kPack<T>) write_pack(out + k, packed<T>(values + k));
        }
    }
}

struct Launch {
    const QueryRows& in;
    const PagedCache& cache;
    float* parts;
    CudaStream stream;
    int64_t chunks = chunks_of(cache.slot_pages * kPage);

    template <class T, int lanes, int heads, bool aligned>
    void reduce() const {
        const int64_t warps = in.rows * cache.heads * chunks * ((in.queries + heads - 1) / heads);
        if (warps == 0) return;
        launch("paged_attention", chunks_kernel<T, lanes, heads, aligned>, blocks_for((warps + kWarps - 1) / kWarps),
               stream, in, cache, static_cast<float>(in.scale * kLog2E), chunks, parts);
    }
    template <class T, int lanes>
    void reduce_aligned() const {
        if (in.queries == 1) return reduce<T, lanes, 1, true>();
        if (in.queries == 2) return reduce<T, lanes, 2, true>();
        return reduce<T, lanes, 4, true>();
    }
    template <class T, bool aligned>
    void merge() const {
        const int64_t warps = in.rows * cache.heads * in.queries;
        launch("paged_attention", merge_kernel<T, aligned>, blocks_for((warps + kWarps - 1) / kWarps), stream, in,
               cache, chunks, parts);
    }
    template <class T>
    void operator()(T) const {
        const auto at_boundary = [](const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; };
        if (cache.width % kSlice || !at_boundary(cache.keys) || !at_boundary(cache.values) || !at_boundary(in.query) ||
            !at_boundary(in.out)) {
            reduce<T, kWarp, 1, false>();
            return merge<T, false>();
        }
        if (cache.width <= 8 * kSlice) {
            reduce_aligned<T, 8>();
        } else if (cache.width <= 16 * kSlice) {
            reduce_aligned<T, 16>();
        } else {
            reduce_aligned<T, kWarp>();
        }
        merge<T, true>();
    }
};

}  // namespace

void paged_attention_cuda(const QueryRows& in, const PagedCache& cache, float* parts, CudaStream stream) {
    if (in.rows > 0) with_cuda_type(cache.dtype, Launch{in, cache, parts, stream});
}

}  // namespace gipo
