// Element types, their conversion to and from the type that sums are kept in, and the exponential.
//
// Half-precision values are stored as bits and converted here, so that no compiler or library support for them is
// needed on the CPU. The functions are branch-free and without library calls, so that loops over them vectorise; on the
// CPU they give the same bits whatever instruction set the compiler uses (no contraction, see CMakeLists.txt).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__CUDACC__)
#define GIPO_HD __host__ __device__ __forceinline__
#else
#define GIPO_HD inline __attribute__((always_inline))
#endif

namespace gipo {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat64 = 3 };  // codes of gipo_mc/ops/native.py

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

template <class T>
struct AccumulatorOf {
    using type = float;
};
template <>
struct AccumulatorOf<double> {
    using type = double;
};
// Type of sums, of intermediate values and of outputs for inputs of type T.
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

// Calls `visit` with a value of the C++ type that `dtype` names.
template <class Visit>
void with_type(DType dtype, Visit&& visit) {
    switch (dtype) {
        case DType::kFloat32:
            return visit(float{});
        case DType::kBFloat16:
            return visit(BFloat16{});
        case DType::kFloat16:
            return visit(Float16{});
        case DType::kFloat64:
            return visit(double{});
    }
    throw std::invalid_argument("gipo_mc._C: unknown dtype code " + std::to_string(static_cast<int>(dtype)) + ".");
}

GIPO_HD uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
GIPO_HD float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

GIPO_HD float widen(float x) {
    return x;
}
GIPO_HD double widen(double x) {
    return x;
}
GIPO_HD float widen(BFloat16 x) {
    return float_of(static_cast<uint32_t>(x.bits) << 16);
}
GIPO_HD float widen(Float16 x) {
    const uint32_t magnitude = (x.bits & 0x7fffu) << 13;
    const uint32_t finite = bits_of(float_of(magnitude) * 0x1p112f);       // moves the exponent, subnormals included
    const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;  // Inf and NaN keep an all-ones exponent
    return float_of(finite | special | ((x.bits & 0x8000u) << 16));
}

template <class T>
struct Narrow;  // one rounding, to nearest even
template <>
struct Narrow<float> {
    static GIPO_HD float from(float x) { return x; }
};
template <>
struct Narrow<double> {
    static GIPO_HD double from(double x) { return x; }
};
template <>
struct Narrow<BFloat16> {
    static GIPO_HD BFloat16 from(float x) {
        const uint32_t bits = bits_of(x);
        const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
        return {static_cast<uint16_t>(nan ? 0x7fc0u : rounded)};
    }
};
template <>
struct Narrow<Float16> {
    static GIPO_HD Float16 from(float x) {
        const uint32_t sign = bits_of(x) & 0x80000000u, magnitude = bits_of(x) ^ sign;
        const uint32_t normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
        const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;  // the addition rounds
        const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
        const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
        return {static_cast<uint16_t>((magnitude >= 0x47800000u ? special : finite) | (sign >> 16))};
    }
};

GIPO_HD bool is_minus_infinity(float x) {
    return x == -HUGE_VALF;
}
GIPO_HD bool is_minus_infinity(double x) {
    return x == -HUGE_VAL;
}
template <class A>
GIPO_HD A minus_infinity() {
    return static_cast<A>(-HUGE_VALF);
}

GIPO_HD double exponential(double x) {
    return exp(x);
}
GIPO_HD float exponential(float x) {
#if defined(__CUDA_ARCH__)
    return expf(x);
#else
    // Cephes' expf: x = n ln 2 + r, e^r by a polynomial (relative error below 2e-7), 2^n in two factors so that
    // subnormal results and the overflow to Inf come out right. NaN passes through every comparison.
    const float low = x < -104.0f ? -104.0f : x;
    const float bounded = low > 89.0f ? 89.0f : low;
    const float shifted = bounded * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: the sum rounds to an integer
    const float n = shifted - 12582912.0f;
    const float r = (bounded - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const uint32_t exponent = bits_of(shifted) - 0x4b400000u;  // n as two's complement
    const uint32_t half = ((exponent + 512u) >> 1) - 256u;
    return p * float_of((half + 127u) << 23) * float_of((exponent - half + 127u) << 23);
#endif
}

GIPO_HD double excess(double x) {
    return expm1(x) - x;
}
// e^x - 1 - x without cancellation near 0.
GIPO_HD float excess(float x) {
    const float series =
        1.0f + x / 3 * (1.0f + x / 4 * (1.0f + x / 5 * (1.0f + x / 6 * (1.0f + x / 7 * (1.0f + x / 8)))));
    const float direct = exponential(x) - 1.0f - x;
    return x > -0.5f && x < 0.5f ? 0.5f * x * x * series : direct;
}

GIPO_HD double logarithm(double x) {
    return log(x);
}
GIPO_HD float logarithm(float x) {
    return logf(x);
}

}  // namespace gipo
