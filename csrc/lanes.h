// Sixteen numbers at a time: the type that the CPU kernels put into the formulas of formulas.h in place of a scalar.
//
// Lanes<E> is sixteen numbers of type E in as many registers of the instruction set as that takes, so that an order of
// reduction given in lanes is the same for every instruction set. Products and sums are fused (fused()) on x86 with
// AVX2 or AVX-512, which give the same bits as each other; without FMA they are rounded twice.
#pragma once

#include "numbers.h"

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#ifndef GIPO_VECTOR_BYTES
#if defined(__AVX512F__) && defined(__AVX512BW__)
#define GIPO_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define GIPO_VECTOR_BYTES 32
#else
#define GIPO_VECTOR_BYTES 16
#endif
#endif

namespace gipo {

constexpr int kLanes = 16;

template <class E>
struct LaneTypes {
    static constexpr int kWidth = GIPO_VECTOR_BYTES / static_cast<int>(sizeof(E));  // numbers in a register
    static constexpr int kParts = kLanes / kWidth;
    typedef E Vector __attribute__((vector_size(GIPO_VECTOR_BYTES)));
    typedef decltype(Vector{} < Vector{}) Comparison;
};

// What a comparison of Lanes<E> gives: all ones where it holds.
template <class E>
struct LaneMask {
    typename LaneTypes<E>::Comparison part[LaneTypes<E>::kParts];
};

template <class E>
struct Lanes {
    using Types = LaneTypes<E>;
    using Vector = typename Types::Vector;
    static constexpr int kParts = Types::kParts;
    Vector part[kParts];

    Lanes() = default;
    GIPO_HD Lanes(E value) {
        for (int k = 0; k < kParts; ++k) part[k] = Vector{} + value;
    }
    GIPO_HD Lanes& operator+=(const Lanes& other) {
        for (int k = 0; k < kParts; ++k) part[k] += other.part[k];
        return *this;
    }
    GIPO_HD E lane(int64_t k) const { return part[k / Types::kWidth][k % Types::kWidth]; }
    GIPO_HD void set(int64_t k, E value) { part[k / Types::kWidth][k % Types::kWidth] = value; }
};

#define GIPO_LANE_OPERATOR(op)                                                              \
    template <class E>                                                                      \
    GIPO_HD Lanes<E> operator op(const Lanes<E>& a, const Lanes<E>& b) {                    \
        Lanes<E> result;                                                                    \
        for (int k = 0; k < Lanes<E>::kParts; ++k) result.part[k] = a.part[k] op b.part[k]; \
        return result;                                                                      \
    }
GIPO_LANE_OPERATOR(+)
GIPO_LANE_OPERATOR(-)
GIPO_LANE_OPERATOR(*)
GIPO_LANE_OPERATOR(/)
#undef GIPO_LANE_OPERATOR

#define GIPO_LANE_COMPARISON(op)                                                            \
    template <class E>                                                                      \
    GIPO_HD LaneMask<E> operator op(const Lanes<E>& a, const Lanes<E>& b) {                 \
        LaneMask<E> result;                                                                 \
        for (int k = 0; k < Lanes<E>::kParts; ++k) result.part[k] = a.part[k] op b.part[k]; \
        return result;                                                                      \
    }
GIPO_LANE_COMPARISON(<)
GIPO_LANE_COMPARISON(>)
GIPO_LANE_COMPARISON(!=)
GIPO_LANE_COMPARISON(==)
#undef GIPO_LANE_COMPARISON

template <class E>
GIPO_HD Lanes<E> operator-(const Lanes<E>& a) {
    Lanes<E> result;
    for (int k = 0; k < Lanes<E>::kParts; ++k) result.part[k] = -a.part[k];
    return result;
}

// a where the mask is set, else b.
template <class E>
GIPO_HD Lanes<E> select(const LaneMask<E>& mask, const Lanes<E>& a, const Lanes<E>& b) {
    Lanes<E> result;
    for (int k = 0; k < Lanes<E>::kParts; ++k) result.part[k] = mask.part[k] ? a.part[k] : b.part[k];
    return result;
}

template <class E>
GIPO_HD LaneMask<E> is_minus_infinity(const Lanes<E>& x) {
    return x == Lanes<E>(minus_infinity<E>());
}

// As clamp_low and clamp_high of numbers.h, which compilers do not see to be one instruction each: x where one is NaN.
GIPO_HD Lanes<float> clamp_low(const Lanes<float>& x, const Lanes<float>& lowest) {
    Lanes<float> result;
    for (int k = 0; k < Lanes<float>::kParts; ++k) {
#if defined(__AVX512F__) && GIPO_VECTOR_BYTES == 64
        result.part[k] = _mm512_max_ps(lowest.part[k], x.part[k]);
#elif defined(__AVX2__) && GIPO_VECTOR_BYTES == 32
        result.part[k] = _mm256_max_ps(lowest.part[k], x.part[k]);
#else
        result.part[k] = lowest.part[k] > x.part[k] ? lowest.part[k] : x.part[k];
#endif
    }
    return result;
}

GIPO_HD Lanes<float> clamp_high(const Lanes<float>& x, const Lanes<float>& highest) {
    Lanes<float> result;
    for (int k = 0; k < Lanes<float>::kParts; ++k) {
#if defined(__AVX512F__) && GIPO_VECTOR_BYTES == 64
        result.part[k] = _mm512_min_ps(highest.part[k], x.part[k]);
#elif defined(__AVX2__) && GIPO_VECTOR_BYTES == 32
        result.part[k] = _mm256_min_ps(highest.part[k], x.part[k]);
#else
        result.part[k] = highest.part[k] < x.part[k] ? highest.part[k] : x.part[k];
#endif
    }
    return result;
}

// a b + c
GIPO_HD Lanes<float> fused(const Lanes<float>& a, const Lanes<float>& b, const Lanes<float>& c) {
    Lanes<float> result;
    for (int k = 0; k < Lanes<float>::kParts; ++k) {
#if defined(__AVX512F__) && GIPO_VECTOR_BYTES == 64
        result.part[k] = _mm512_fmadd_ps(a.part[k], b.part[k], c.part[k]);
#elif defined(__FMA__) && GIPO_VECTOR_BYTES == 32
        result.part[k] = _mm256_fmadd_ps(a.part[k], b.part[k], c.part[k]);
#else
        result.part[k] = a.part[k] * b.part[k] + c.part[k];
#endif
    }
    return result;
}
GIPO_HD Lanes<double> fused(const Lanes<double>& a, const Lanes<double>& b, const Lanes<double>& c) {
    return a * b + c;
}

// Element k of a and b behind one another, from `start` on.
template <int start, class E, class Vector = typename LaneTypes<E>::Vector>
GIPO_HD Vector window(const Vector& a, const Vector& b) {
    constexpr int kWidth = LaneTypes<E>::kWidth;
    typename LaneTypes<E>::Comparison from;
    for (int k = 0; k < kWidth; ++k) from[k] = k + start;
#if defined(__clang__)
    Vector result;  // which this compiler sees to be a permutation
    for (int k = 0; k < kWidth; ++k) result[k] = from[k] < kWidth ? a[from[k] % kWidth] : b[from[k] % kWidth];
    return result;
#else
    return __builtin_shuffle(a, b, from);
#endif
}

// Lane k gets what lane k + distance had; the last lanes get 0. distance: 1, 2, 4 or 8.
template <int distance, class E>
GIPO_HD Lanes<E> shifted_down(const Lanes<E>& x) {
    constexpr int kWidth = LaneTypes<E>::kWidth, kParts = Lanes<E>::kParts, kWhole = distance / kWidth;
    Lanes<E> result;
    for (int k = 0; k < kParts; ++k) {
        const Lanes<E> none(E(0));
        const auto& first = k + kWhole < kParts ? x.part[(k + kWhole) % kParts] : none.part[0];
        const auto& second = k + kWhole + 1 < kParts ? x.part[(k + kWhole + 1) % kParts] : none.part[0];
        result.part[k] = window<distance % kWidth, E>(first, second);
    }
    return result;
}

// Numbers whose low eight bits are a biased exponent -> the powers of two with that exponent.
GIPO_HD Lanes<float> power_of_bits(const Lanes<float>& x) {
    typedef typename LaneTypes<uint32_t>::Vector Words;
    Lanes<float> result;
    for (int k = 0; k < Lanes<float>::kParts; ++k) result.part[k] = (Lanes<float>::Vector)((Words)x.part[k] << 23);
    return result;
}
GIPO_HD Lanes<float> power_of_two(const Lanes<float>& x) {
    return power_of_two_polynomial(x);
}

// Sixteen doubles, for checks in float64, go through the functions of a scalar one by one.
template <class Function>
GIPO_HD Lanes<double> each(const Lanes<double>& x, const Function& function) {
    double values[kLanes];
    memcpy(values, &x, sizeof x);
    for (double& value : values) value = function(value);
    Lanes<double> result;
    memcpy(&result, values, sizeof result);
    return result;
}
GIPO_HD Lanes<double> power_of_two(const Lanes<double>& x) {
    return each(x, [](double value) GIPO_INLINE { return exp2(value); });
}
GIPO_HD Exponential<Lanes<double>> exponential_of(const Lanes<double>& x) {
    return {each(x, [](double value) GIPO_INLINE { return exp(value); }),
            each(x, [](double value) GIPO_INLINE { return expm1(value) - value; })};
}

// The upper halves of the words of bfloat16 numbers, rounded to nearest even, as Narrow<BFloat16>.
GIPO_HD Lanes<uint32_t> rounded_to_bfloat16(const Lanes<float>& x) {
    typedef typename LaneTypes<uint32_t>::Vector Words;
    Lanes<uint32_t> result;
    for (int k = 0; k < Lanes<float>::kParts; ++k) {
        const Words bits = (Words)x.part[k];
        const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        result.part[k] = x.part[k] != x.part[k] ? Words{} + 0x7fc0u : rounded;
    }
    return result;
}

// ---- Memory -------------------------------------------------------------------------------------------------------

// A register at a time: compilers copy a whole Lanes in smaller pieces through the stack.
template <class E>
GIPO_HD Lanes<E> load_lanes(const E* from) {
    Lanes<E> result;
    for (int k = 0; k < Lanes<E>::kParts; ++k) {
        memcpy(&result.part[k], from + k * LaneTypes<E>::kWidth, sizeof result.part[k]);
    }
    return result;
}
template <class E>
GIPO_HD void store_lanes(E* to, const Lanes<E>& values) {
    for (int k = 0; k < Lanes<E>::kParts; ++k) {
        memcpy(to + k * LaneTypes<E>::kWidth, &values.part[k], sizeof values.part[k]);
    }
}

#if GIPO_VECTOR_BYTES == 64 && defined(__AVX512BW__)
GIPO_HD Lanes<float> load_lanes(const BFloat16* from) {
    Lanes<float> result;
    const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    result.part[0] = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
    return result;
}
GIPO_HD void store_lanes(BFloat16* to, const Lanes<float>& values) {
    const __m256i halves = _mm512_cvtepi32_epi16((__m512i)rounded_to_bfloat16(values).part[0]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves);
}
GIPO_HD Lanes<float> load_lanes(const Float16* from) {
    Lanes<float> result;
    result.part[0] = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    return result;
}
GIPO_HD void store_lanes(Float16* to, const Lanes<float>& values) {
    const __m256i halves = _mm512_cvtps_ph(values.part[0], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves);
}
#elif GIPO_VECTOR_BYTES == 32 && defined(__AVX2__) && defined(__F16C__)
GIPO_HD Lanes<float> load_lanes(const BFloat16* from) {
    Lanes<float> result;
    for (int k = 0; k < 2; ++k) {
        const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 8 * k));
        result.part[k] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
    }
    return result;
}
GIPO_HD void store_lanes(BFloat16* to, const Lanes<float>& values) {
    const Lanes<uint32_t> words = rounded_to_bfloat16(values);
    // packus interleaves the 128-bit halves of its arguments; the permutation puts them in order.
    const __m256i mixed = _mm256_packus_epi32((__m256i)words.part[0], (__m256i)words.part[1]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(mixed, 0xd8));
}
GIPO_HD Lanes<float> load_lanes(const Float16* from) {
    Lanes<float> result;
    for (int k = 0; k < 2; ++k) {
        result.part[k] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 8 * k)));
    }
    return result;
}
GIPO_HD void store_lanes(Float16* to, const Lanes<float>& values) {
    for (int k = 0; k < 2; ++k) {
        const __m128i halves = _mm256_cvtps_ph(values.part[k], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 8 * k), halves);
    }
}
#else
template <class T>
GIPO_HD Lanes<float> load_halves(const T* from) {
    float values[kLanes];
    for (int k = 0; k < kLanes; ++k) values[k] = widen(from[k]);
    return load_lanes(values);
}
template <class T>
GIPO_HD void store_halves(T* to, const Lanes<float>& lanes) {
    float values[kLanes];
    store_lanes(values, lanes);
    for (int k = 0; k < kLanes; ++k) to[k] = Narrow<T>::from(values[k]);
}
GIPO_HD Lanes<float> load_lanes(const BFloat16* from) {
    return load_halves(from);
}
GIPO_HD void store_lanes(BFloat16* to, const Lanes<float>& values) {
    store_halves(to, values);
}
GIPO_HD Lanes<float> load_lanes(const Float16* from) {
    return load_halves(from);
}
GIPO_HD void store_lanes(Float16* to, const Lanes<float>& values) {
    store_halves(to, values);
}
#endif

// The `count` < 16 elements at `from`, and `filler` in the lanes after them.
template <class T>
GIPO_HD Lanes<Accumulator<T>> load_lanes(const T* from, int64_t count, T filler) {
    T values[kLanes];
    for (T& value : values) value = filler;
    memcpy(values, from, count * sizeof(T));
    return load_lanes(values);
}
template <class T>
GIPO_HD void store_lanes(T* to, int64_t count, const Lanes<Accumulator<T>>& lanes) {
    T values[kLanes];
    store_lanes(values, lanes);
    memcpy(to, values, count * sizeof(T));
}

}  // namespace gipo
