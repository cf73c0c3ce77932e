// Rows of any width in registers of sixteen lanes, sums over lanes, and lanes exchanged between registers.
#pragma once

#include "cpu.h"
#include "lanes.h"

namespace gipo {
namespace GIPO_ISA {
namespace {

using Floats = Lanes<float>;

#if defined(__AVX512F__) && GIPO_VECTOR_BYTES == 64
GIPO_HD __mmask16 first_lanes(int64_t count) {
    return static_cast<__mmask16>((1u << count) - 1);
}
#endif

// The numbers of `width` from d on, and zeros in the lanes after them.
template <class T>
GIPO_HD Floats numbers_at(const T* row, int64_t d, int64_t width) {
    if (d + kLanes <= width) return load_lanes(row + d);
#if defined(__AVX512F__) && GIPO_VECTOR_BYTES == 64
    if constexpr (sizeof(T) == sizeof(float)) {
        Floats result;
        result.part[0] = _mm512_maskz_loadu_ps(first_lanes(width - d), row + d);
        return result;
    }
#endif
    if (d + kLanes / 2 != width) return load_lanes(row + d, width - d, T{});
    T values[kLanes] = {};
    memcpy(values, row + d, sizeof values / 2);  // of a size that the compiler knows
    return load_lanes(values);
}

// The lanes to the numbers of `width` from d on.
GIPO_HD void put_numbers(float* row, int64_t d, int64_t width, const Floats& lanes) {
    if (d + kLanes <= width) return store_lanes(row + d, lanes);
#if defined(__AVX512F__) && GIPO_VECTOR_BYTES == 64
    _mm512_mask_storeu_ps(row + d, first_lanes(width - d), lanes.part[0]);
#else
    store_lanes(row + d, width - d, lanes);
#endif
}

GIPO_HD Floats in_all_lanes(float value) {
    Floats result;
    for (int k = 0; k < Floats::kParts; ++k) result.part[k] = value - Floats::Vector{};  // one instruction, not two
    return result;
}

GIPO_HD float in_order(const Floats& lanes) {
    float total = 0;
    for (int k = 0; k < kLanes; ++k) total += lanes.lane(k);
    return total;
}

// Lane k of `low`: a[k] where bit `distance` of k is 0, else b[k - distance]; of `high`: a[k + distance], else b[k].
template <int distance>
GIPO_HD void exchange(const Floats& a, const Floats& b, Floats& low, Floats& high) {
    constexpr int kWidth = LaneTypes<float>::kWidth, kStep = distance / kWidth;
    for (int k = 0; k < Floats::kParts; ++k) {
        if constexpr (kStep > 0) {
            low.part[k] = k & kStep ? b.part[k & ~kStep] : a.part[k];
            high.part[k] = k & kStep ? b.part[k] : a.part[k | kStep];
        } else {
            LaneTypes<float>::Comparison lower, upper;
            for (int e = 0; e < kWidth; ++e) lower[e] = e & distance ? kWidth + e - distance : e;
            for (int e = 0; e < kWidth; ++e) upper[e] = e & distance ? kWidth + e : e + distance;
#if defined(__clang__)
            for (int e = 0; e < kWidth; ++e) {
                low.part[k][e] = e & distance ? b.part[k][e - distance] : a.part[k][e];
                high.part[k][e] = e & distance ? b.part[k][e] : a.part[k][e + distance];
            }
#else
            low.part[k] = __builtin_shuffle(a.part[k], b.part[k], lower);
            high.part[k] = __builtin_shuffle(a.part[k], b.part[k], upper);
#endif
        }
    }
}

// Lane k gets x[k] + x[k + distance] where bit `distance` of k is 0, x = a; else x[k - distance] + x[k], x = b.
template <int distance>
GIPO_HD Floats folded(const Floats& a, const Floats& b) {
    Floats low, high;
    exchange<distance>(a, b, low, high);
    return low + high;
}

// join(join(...)) of all lanes, those 8, 4, 2 and 1 apart.
template <int distance = kLanes / 2, class Join>
GIPO_HD float across(const Floats& lanes, const Join& join) {
    Floats low, high;
    exchange<distance>(lanes, lanes, low, high);
    const Floats joined = join(low, high);
    if constexpr (distance == 1) {
        return joined.lane(0);
    } else {
        return across<distance / 2>(joined, join);
    }
}

GIPO_HD float total(const Floats& lanes) {
    return across(lanes, [](const Floats& a, const Floats& b) GIPO_INLINE { return a + b; });
}

// Lane k of row n and lane n of row k change places.
template <int distance = kLanes / 2>
GIPO_HD void transpose(Floats (&rows)[kLanes]) {
    for (int n = 0; n < kLanes; ++n) {
        if (n & distance) continue;
        Floats low, high;
        exchange<distance>(rows[n], rows[n + distance], low, high);
        rows[n] = low;
        rows[n + distance] = high;
    }
    if constexpr (distance > 1) transpose<distance / 2>(rows);
}

}  // namespace
}  // namespace GIPO_ISA
}  // namespace gipo
