// Arithmetic of a tile [kPage, width] of the paged cache on the CPU, sixteen numbers at a time: products of its rows
// with queries, and weighted sums of them. Rows are loaded once for several query heads. paged_attention.cpp gives the
// order of reduction.
#pragma once

#include "cpu.h"
#include "paged_cache.h"
#include "row_lanes.h"

namespace gipo {
namespace GIPO_ISA {
namespace {

// Query heads that share what is loaded, and sixteens of their coordinates whose sums are held in registers.
constexpr int kShared = GIPO_VECTOR_BYTES == 64 ? 4 : 2, kHeld = GIPO_VECTOR_BYTES == 64 ? 4 : 2;

// Tiles that are asked for ahead of their use, into the second-level cache: pages lie anywhere, and no processor
// guesses where.
constexpr int64_t kAhead = 2;

template <class T>
GIPO_HD void prefetch(const T* row, int64_t width) {
    const char* bytes = reinterpret_cast<const char*>(row);
    const int64_t size = width * static_cast<int64_t>(sizeof(T));
    for (int64_t b = 0; b < size; b += 64) __builtin_prefetch(bytes + b, 0, 2);
}

template <int heads>
struct PerHead {
    Floats of[heads];
};

// Products of the queries with key `first` of a tile and every `distance`-th after it, in the lanes of their numbers.
template <int heads, int distance, class T>
GIPO_HD PerHead<heads> products(const T* tile, const T* next, int64_t first, int64_t width, const float* query) {
    PerHead<heads> result;
    if constexpr (distance < kLanes / 2) {
        const auto a = products<heads, 2 * distance>(tile, next, first, width, query);
        const auto b = products<heads, 2 * distance>(tile, next, first + distance, width, query);
        for (int h = 0; h < heads; ++h) result.of[h] = folded<distance>(a.of[h], b.of[h]);
    } else {
        const T *const key = tile + first * width, *const other = key + distance * width;
        if (next != nullptr) {
            prefetch(next + first * width, width);
            prefetch(next + (first + distance) * width, width);
        }
        PerHead<heads> sums[2];
        for (int h = 0; h < heads; ++h) sums[0].of[h] = sums[1].of[h] = Floats(0.0f);
        const auto add = [&](const Floats& numbers, const Floats& others, int64_t d) GIPO_INLINE {
            for (int h = 0; h < heads; ++h) {
                const Floats asked = load_lanes(query + h * kWidestHead + d);
                sums[0].of[h] = fused(asked, numbers, sums[0].of[h]);
                sums[1].of[h] = fused(asked, others, sums[1].of[h]);
            }
        };
        int64_t d = 0;
        for (; d + kLanes <= width; d += kLanes) add(load_lanes(key + d), load_lanes(other + d), d);
        if (d < width) add(numbers_at(key, d, width), numbers_at(other, d, width), d);
        for (int h = 0; h < heads; ++h) result.of[h] = folded<distance>(sums[0].of[h], sums[1].of[h]);
    }
    return result;
}

// Adds the values of the first `count` positions of a tile, weighted, to the sums of coordinates d to d + 16 blocks.
// The weights of a query head are `stride` behind those of the one before it.
template <int heads, int blocks, class T>
GIPO_HD void add_values(const T* tile, const T* next, int64_t count, int64_t d, int64_t width, const float* weight,
                        int64_t stride, float* sums) {
    Floats held[heads][blocks];
    for (int h = 0; h < heads; ++h) {
        for (int b = 0; b < blocks; ++b) held[h][b] = load_lanes(sums + h * kWidestHead + d + b * kLanes);
    }
    for (int64_t t = 0; t < count; ++t) {
        if (next != nullptr) prefetch(next + t * width, width);
        Floats values[blocks];
        for (int b = 0; b < blocks; ++b) values[b] = numbers_at(tile + t * width, d + b * kLanes, width);
        for (int h = 0; h < heads; ++h) {
            const Floats factor = in_all_lanes(weight[h * stride + t]);
            for (int b = 0; b < blocks; ++b) held[h][b] = fused(factor, values[b], held[h][b]);
        }
    }
    for (int h = 0; h < heads; ++h) {
        for (int b = 0; b < blocks; ++b) store_lanes(sums + h * kWidestHead + d + b * kLanes, held[h][b]);
    }
}

}  // namespace
}  // namespace GIPO_ISA
}  // namespace gipo
