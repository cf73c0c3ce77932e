// Element types, their conversion to and from the type that sums are kept in, and the exponential.
//
// Half-precision values are stored as bits and converted here, so that no compiler or library support for them is
// needed on the CPU. The functions are branch-free and without library calls, so that loops over them vectorise; on the
// CPU they give the same bits whatever instruction set the compiler uses (no contraction, see CMakeLists.txt).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define GIPO_HD __host__ __device__ __forceinline__
#else
#define GIPO_HD inline __attribute__((always_inline))
#endif
#define GIPO_INLINE __attribute__((always_inline))  // for lambdas

namespace gipo {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat64 = 3 };  // codes of gipo_mc/ops/native.py

using CudaStream = void*;  // a cudaStream_t, whose header a build for the CPU does not have

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

template <class A>
GIPO_HD A minus_infinity() {
    return static_cast<A>(-HUGE_VALF);
}

// a where `condition` holds, else b. Written so because lanes.h has the same for sixteen numbers at a time.
template <class A>
GIPO_HD A select(bool condition, A a, A b) {
    return condition ? a : b;
}

GIPO_HD bool is_minus_infinity(float x) {
    return x == -HUGE_VALF;
}
GIPO_HD bool is_minus_infinity(double x) {
    return x == -HUGE_VAL;
}

// a b + c, rounded once where the instruction set has it.
GIPO_HD double fused(double a, double b, double c) {
    return a * b + c;
}
GIPO_HD float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__) || defined(__FMA__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

// ---- Exponentials -------------------------------------------------------------------------------------------------

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

// The type of the scalars that go with A, which may be sixteen of them.
template <class A>
struct ScalarOf {
    using type = A;
};
template <class E>
struct Lanes;
template <class E>
struct ScalarOf<Lanes<E>> {
    using type = E;
};
template <class A>
using Scalar = typename ScalarOf<A>::type;

// The exponent at and below which power_of_two is exactly 0, and that at which it is Inf.
template <class S>
GIPO_HD S lowest_exponent() {
#if defined(__CUDA_ARCH__)
    return S(-160);
#else
    return sizeof(S) == 8 ? S(-1100) : S(-127);
#endif
}

// A number whose low eight bits are a biased exponent -> the power of two with that exponent.
GIPO_HD float power_of_bits(float x) {
    return float_of(bits_of(x) << 23);
}

constexpr float kExponentShift = 12583039.0f;  // 1.5 * 2^23 + 127: a sum with it is rounded to an integer, whose
                                               // low bits are the biased exponent of 2 to the other summand

// 2^x for -127 <= x <= 128, or NaN: x = n + f with |f| <= 1/2, 2^f by the polynomial of degree 6 that is 1 at 0 and has
// the smallest relative error (2.6e-9, and 1.3e-7 as rounded here). Exactly 1 at 0; 0 below -126.5, where 2^n would be
// subnormal; Inf for n = 128.
template <class A>
GIPO_HD A power_of_two_polynomial(A x) {
    const A shifted = x + A(kExponentShift);
    const A f = x - (shifted - A(kExponentShift));
    A p = fused(A(0x1.470b4ap-13f), f, A(0x1.5f7276p-10f));
    p = fused(p, f, A(0x1.3b270ep-7f));
    p = fused(p, f, A(0x1.c6ae72p-5f));
    p = fused(p, f, A(0x1.ebfbe2p-3f));
    p = fused(p, f, A(0x1.62e432p-1f));
    p = fused(p, f, A(1.0f));
    return p * power_of_bits(shifted);
}

GIPO_HD double power_of_two(double x) {
    return exp2(x);
}
GIPO_HD float power_of_two(float x) {
#if defined(__CUDA_ARCH__)
    float power;  // one instruction, of relative error below 1.2e-7; exp2f takes four, for subnormal results
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
#else
    return power_of_two_polynomial(x);
#endif
}

// x, but at least `lowest`; NaN stays NaN.
template <class A>
GIPO_HD A clamp_low(A x, A lowest) {
    return select(lowest > x, lowest, x);
}

// x, but at most `highest`; NaN stays NaN.
template <class A>
GIPO_HD A clamp_high(A x, A highest) {
    return select(highest < x, highest, x);
}

template <class A>
GIPO_HD A clamp(A x, A lowest, A highest) {
    return clamp_high(clamp_low(x, lowest), highest);
}

// x, but not below the exponent whose power is 0.
template <class A>
GIPO_HD A bounded_exponent(A x) {
    return clamp_low(x, A(lowest_exponent<Scalar<A>>()));
}

// e^x, and e^x - 1 - x without cancellation near 0, which the small KL of a young policy is made of.
template <class A>
struct Exponential {
    A value, excess;
};

GIPO_HD Exponential<double> exponential_of(double x) {
    return {exp(x), expm1(x) - x};
}
// On the CPU e^x: relative error below 2e-7; 0 below -87.6 (where it is 8e-39), Inf above 88.3. e^x - 1 - x: below 4e-7
// for |x| < 0.34, where it is a polynomial, and 3e-6 elsewhere, the most at 0.35, where it is the difference of larger
// numbers.
template <class A>
GIPO_HD Exponential<A> exponential_of(A x) {
#if defined(__CUDA_ARCH__)
    A series = fused(x, A(1.0f / 40320), A(1.0f / 5040));
    series = fused(series, x, A(1.0f / 720));
    series = fused(series, x, A(1.0f / 120));
    series = fused(series, x, A(1.0f / 24));
    series = fused(series, x, A(1.0f / 6));
    series = fused(series, x, A(0.5f));
    const A value = expf(x);
    return {value, fabsf(x) < 0.5f ? series * (x * x) : value - 1.0f - x};
#else
    const A bounded = clamp(x, A(-88.0f), A(89.0f));
    const A shifted = fused(bounded, A(static_cast<float>(kLog2E)), A(kExponentShift));
    const A n = shifted - A(kExponentShift);
    const A r = fused(n, A(2.12194440e-4f), fused(n, A(-0.693359375f), bounded));  // x - n ln 2, ln 2 in two parts
    // e^r - 1 - r = r^2 times the polynomial of the smallest relative error, 1.3e-7, for |r| <= ln 2 / 2.
    A p = fused(A(0x1.6c6a06p-10f), r, A(0x1.120b58p-7f));
    p = fused(p, r, A(0x1.5555bap-5f));
    p = fused(p, r, A(0x1.5554dep-3f));
    p = fused(p, r, A(0.5f));
    const A rest = p * (r * r);
    const A value = (A(1.0f) + (r + rest)) * power_of_bits(shifted);
    return {value, select(n == A(0.0f), rest, value - A(1.0f) - x)};
#endif
}

template <class A>
GIPO_HD A exponential(A x) {
    return exponential_of(x).value;
}
template <class A>
GIPO_HD A excess(A x) {
    return exponential_of(x).excess;
}

GIPO_HD double logarithm(double x) {
    return log(x);
}
GIPO_HD float logarithm(float x) {
    return logf(x);
}

}  // namespace gipo
