// Where the logits of a row, from the largest to the smallest, have reached a given mass: the cuts of top-k (a logit
// weighs 1) and of top-p (a logit weighs its probability) by one block, without sorting.
//
// Logits become integers of the same order. The masses of equal ranges of these are added up in 1024 bins, in one pass
// over the row; the bin in which the goal is reached becomes the next range, until it is one integer: at most four
// passes, two or three where a lower bound keeps the first range short.
//
// Masses are integers, in units of 2^-40 of the largest logit's: their sums are the same in whatever order they are
// added, so that atomic additions change no bit from one run to the next.
#pragma once

#include "token_rows.cuh"

namespace gipo {

using Mass = unsigned long long;

constexpr int kBins = 1024;
constexpr float kUnit = 0x1p40f;
constexpr Mass kEverything = ~Mass(0);

// Integers in the order of the floats, both zeros alike; no bits that are the same for all numbers of T.
template <class T>
constexpr int kUnusedBits = 0;
template <>
constexpr int kUnusedBits<BFloat16> = 16;
template <>
constexpr int kUnusedBits<Float16> = 13;

template <class T>
GIPO_HD uint32_t key_of(float logit) {
    const uint32_t bits = bits_of(logit + 0.0f);
    return (bits & 0x80000000u ? ~bits : bits | 0x80000000u) >> kUnusedBits<T>;
}
template <class T>
GIPO_HD float logit_of(uint32_t key) {
    const uint32_t bits = key << kUnusedBits<T>;
    return float_of(bits & 0x80000000u ? bits ^ 0x80000000u : ~(bits | ((1u << kUnusedBits<T>)-1u)));
}

// What the threads of a block share while they select and draw.
struct Selection {
    Mass bins[kBins];
    Mass sums[kThreads];
    Mass groups[kThreads / 16];
    Mass total;
    uint32_t low, high;
    Mass goal;
};

// The first of `count` masses that exceeds `rest` together with those before it, and what is left of `rest` there;
// where rounding lets none do so, the last mass that is not 0, up to its end.
struct Place {
    int index;
    Mass rest;
};
template <class Masses>
__device__ __forceinline__ Place walk(int count, Mass rest, const Masses& masses) {
    Place last{0, 0};
#pragma unroll 1
    for (int k = 0; k < count; ++k) {
        const Mass mass = masses(k);
        if (mass > rest) return {k, rest};
        rest -= mass;
        if (mass > 0) last = {k, mass - 1};
    }
    return last;
}

// As walk, over a mass of each thread; known to thread 0.
__device__ __forceinline__ Place walk_threads(Mass mass, Mass rest, Selection& shared) {
    shared.sums[threadIdx.x] = mass;
    __syncthreads();
    if (threadIdx.x < kThreads / 16) {
        Mass group = 0;
        for (int k = 0; k < 16; ++k) group += shared.sums[16 * threadIdx.x + k];
        shared.groups[threadIdx.x] = group;
    }
    __syncthreads();
    if (threadIdx.x != 0) return {0, 0};
    const Place group = walk(kThreads / 16, rest, [&](int k) { return shared.groups[k]; });
    const Place place = walk(16, group.rest, [&](int k) { return shared.sums[16 * group.index + k]; });
    return {16 * group.index + place.index, place.rest};
}

// Calls body(logit, number of its subset, column) for this thread's logits of a row. The subsets of all threads,
// kUnroll each, have no column in common.
template <class T, class Body>
__device__ __forceinline__ void over_row(const T* __restrict__ row, int64_t columns, const Body& body) {
    const RowCut cut = cut_row(row, columns);
    over_packs(cut.packs, [&](int64_t pack, auto count) {
        const int64_t start = cut.head + pack * kPack<T>;
        uint4 packs[kUnroll];
#pragma unroll
        for (int j = 0; j < kUnroll; ++j) {
            packs[j] =
                j < count ? read_once(row + start + j * kThreads * kPack<T>) : pack_of<T>(minus_infinity<float>());
        }
#pragma unroll
        for (int j = 0; j < kUnroll; ++j) {
            float logits[kPack<T>];
            unpack<T>(packs[j], logits);
#pragma unroll
            for (int k = 0; k < kPack<T>; ++k) body(logits[k], j, start + j * kThreads * kPack<T> + k);
        }
    });
    if (threadIdx.x < cut.singles()) {
        const int64_t v = cut.single(threadIdx.x);
        body(widen(row[v]), 0, v);
    }
}

// The key at which the numbers with keys from `low` to `high` reach the mass `goal` > 0, from the largest on; what is
// left of the goal there; and the mass of that key alone. Without such a key, `low` and everything.
// visit(add): calls add(key, mass) for this thread's numbers. Known to all threads.
struct Reached {
    uint32_t key;
    Mass rest, mass;
};
template <class Visit>
__device__ __forceinline__ Reached reach(uint32_t low, uint32_t high, Mass goal, Selection& shared,
                                         const Visit& visit) {
#pragma unroll 1
    for (;;) {
        int shift = 0;
        while ((high - low) >> shift >= kBins) ++shift;
        for (int k = threadIdx.x; k < kBins; k += kThreads) shared.bins[k] = 0;
        __syncthreads();
        visit([&](uint32_t key, Mass mass) {
            if (key >= low && key <= high) atomicAdd(&shared.bins[(high - key) >> shift], mass);
        });
        __syncthreads();
        constexpr int kOfAThread = kBins / kThreads;
        const Mass* own = shared.bins + kOfAThread * threadIdx.x;
        Mass sum = 0;
        for (int k = 0; k < kOfAThread; ++k) sum += own[k];
        const Place four = walk_threads(sum, goal - 1, shared);
        if (threadIdx.x == 0) {
            const Mass* bins = shared.bins + kOfAThread * four.index;
            const Place place = walk(kOfAThread, four.rest, [&](int k) { return bins[k]; });
            const uint32_t bin = static_cast<uint32_t>(kOfAThread * four.index + place.index);
            const uint32_t top = high - (bin << shift),
                           bottom = top - low < (1u << shift) ? low : top - (1u << shift) + 1;
            shared.high = top;
            shared.low = bottom;
            shared.goal = place.rest + 1;
            shared.total = shared.bins[bin];
        }
        __syncthreads();
        low = shared.low;
        high = shared.high;
        goal = shared.goal;
        const Mass mass = shared.total;
        __syncthreads();
        if (low == high) return {low, goal, mass};
    }
}

}  // namespace gipo
