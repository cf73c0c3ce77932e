// Build and test: pip install -e . && pytest tests/ops/test_token_statistics.py
//
// Op A on the CPU, over a range of rows; compiled for every instruction set (cpu.h). A row is worked on in blocks that
// fit the first-level cache: a block is read for its maximum and again for its sums, so that memory is read once: 2
// bytes a bf16 logit forward, 4 backward.
//
// Order of reduction: 16 interleaved lanes inside a block of 2048 columns, lanes then added in order in double, blocks
// in order in double. It depends on the number of columns only, not on threads; AVX2 and AVX-512 give the same bits.
#include "cpu.h"
#include "logit_lanes.h"

namespace gipo {
namespace GIPO_ISA {
namespace {

constexpr int64_t kBlock = 2048;

template <class T, class A = Accumulator<T>>
GIPO_HD SoftmaxPart<A> row_part(const T* row, int64_t columns, A inverse_temperature) {
    const A scale = inverse_temperature * A(kLog2E);
    A maximum = minus_infinity<A>();
    double sum = 0, weighted = 0;  // of 2^x and 2^x x
    for (int64_t block = 0; block < columns; block += kBlock) {
        const int64_t end = columns - block < kBlock ? columns : block + kBlock;
        const A highest = maximum_of(row, block, end);
        if (highest > maximum) {
            const A shift = exponent_of(maximum, highest, scale), factor = power_of_two(shift);
            weighted = static_cast<double>(factor) * (weighted + sum * static_cast<double>(shift));
            sum *= static_cast<double>(factor);
            maximum = highest;
        }
        const Lanes<A> centre(maximum), scales(scale);
        Lanes<A> sums(A(0)), products(A(0));
        const auto add = [&](const Lanes<A>& logits) GIPO_INLINE {
            const Lanes<A> x = exponent_of(logits, centre, scales), value = power_of_two(x);
            sums += value;
            products = fused(value, x, products);
        };
        int64_t v = block;
        for (; v + kLanes <= end; v += kLanes) add(load_lanes(row + v));
        if (v < end) add(logits_at(row, v, end));
        sum += in_order(sums);
        weighted += in_order(products);
    }
    return {maximum, static_cast<A>(sum), static_cast<A>(weighted * kLn2)};
}

// Calls visit(row number, its part, its target's logit).
template <class T, class Visit>
GIPO_HD void for_each_part(const LogitRows& in, int64_t begin, int64_t end, const Visit& visit) {
    using A = Accumulator<T>;
    for (int64_t i = begin; i < end; ++i) {
        const T* row = static_cast<const T*>(in.logits) + i * in.stride;
        const SoftmaxPart<A> part = row_part(row, in.columns, static_cast<A>(1.0 / in.temperature));
        const int64_t column = in.targets[i] - in.first;
        visit(i, part, column >= 0 && column < in.columns ? widen(row[column]) : minus_infinity<A>());
    }
}

template <class T>
void partials_of_rows(const LogitRows& in, void* out, int64_t begin, int64_t end) {
    using A = Accumulator<T>;
    A* partials = static_cast<A*>(out);
    for_each_part<T>(in, begin, end, [&](int64_t i, const SoftmaxPart<A>& part, A target_logit) GIPO_INLINE {
        partials[kPartialMaximum * in.rows + i] = part.maximum;
        partials[kPartialSum * in.rows + i] = part.sum;
        partials[kPartialWeighted * in.rows + i] = part.weighted;
        partials[kPartialTarget * in.rows + i] = target_logit;
    });
}

template <class T>
void results_of_rows(const LogitRows& in, const TokenResults& out, int64_t begin, int64_t end) {
    using A = Accumulator<T>;
    const A inverse_temperature = static_cast<A>(1.0 / in.temperature);
    for_each_part<T>(in, begin, end, [&](int64_t i, const SoftmaxPart<A>& part, A target_logit) GIPO_INLINE {
        put_results(out, in.rows, i, part, target_logit, in.targets[i] == kIgnoredTarget, inverse_temperature);
    });
}

template <class T, class A = Accumulator<T>>
GIPO_HD void gradient_of_row(const T* row, T* out, int64_t columns, int64_t target, const TokenSlope<A>& slope) {
    const bool here = target >= 0 && target < columns;
    const A target_logit = here ? widen(row[target]) : A(0);  // read before `out`, which may be the row, is written
    const TokenSlope<Lanes<A>> lanes{slope.maximum,       slope.log_sum,          slope.entropy,
                                     slope.logp_gradient, slope.entropy_gradient, slope.inverse_temperature};
    int64_t v = 0;
    for (; v + kLanes <= columns; v += kLanes) store_lanes(out + v, lanes.beside_target(load_lanes(row + v)));
    if (v < columns) store_lanes(out + v, columns - v, lanes.beside_target(logits_at(row, v, columns)));
    if (here) out[target] = Narrow<T>::from(slope.of_target(target_logit));
}

template <class T>
void gradient_of_rows(const LogitRows& in, const LogitGradient& gradient, int64_t begin, int64_t end) {
    using A = Accumulator<T>;
    const T zero = Narrow<T>::from(A(0));
    for (int64_t i = begin; i < end; ++i) {
        const T* row = static_cast<const T*>(in.logits) + i * in.stride;
        T* out = static_cast<T*>(gradient.out) + i * gradient.stride;
        const TokenSlope<A> slope = slope_of_row<A>(in, gradient, i, static_cast<A>(1.0 / in.temperature));
        int64_t written = 0;
        if (!slope.zero()) {
            gradient_of_row(row, out, in.columns, in.targets[i] - in.first, slope);
            written = in.columns;
        }
        for (int64_t v = written; v < gradient.width; ++v) out[v] = zero;
    }
}

}  // namespace

extern const TokenRowKernels token_rows = {
    {partials_of_rows<float>, partials_of_rows<BFloat16>, partials_of_rows<Float16>, partials_of_rows<double>},
    {results_of_rows<float>, results_of_rows<BFloat16>, results_of_rows<Float16>, results_of_rows<double>},
    {gradient_of_rows<float>, gradient_of_rows<BFloat16>, gradient_of_rows<Float16>, gradient_of_rows<double>},
};

}  // namespace GIPO_ISA
}  // namespace gipo
