// Op A on the CPU. A row is read twice by one thread, for its maximum and for its sums; the second read comes out of
// the cache (a row of 128256 bf16 logits is 256 KiB), so memory is read once: 2 bytes a bf16 logit forward, 4 backward.
//
// Order of reduction: 16 interleaved lanes inside a block of 1024 columns, lanes then added in order in double, blocks
// in order in double. It depends on the number of columns only, neither on threads nor on the instruction set.
#include "token_statistics.h"

#include "formulas.h"
#include "parallel.h"

namespace gipo {
namespace {

constexpr int kLanes = 16;
constexpr int kBlock = 1024;
constexpr int kTile = 256;  // columns that the gradient converts, computes and stores at a time

template <class T, class A = Accumulator<T>>
A row_maximum(const T* row, int64_t columns) {
    A lanes[kLanes];
    for (A& lane : lanes) lane = minus_infinity<A>();
    int64_t v = 0;
    for (; v + kLanes <= columns; v += kLanes) {
        for (int k = 0; k < kLanes; ++k) {
            const A z = widen(row[v + k]);
            lanes[k] = z > lanes[k] ? z : lanes[k];
        }
    }
    for (; v < columns; ++v) {
        const A z = widen(row[v]);
        lanes[0] = z > lanes[0] ? z : lanes[0];
    }
    A maximum = lanes[0];
    for (const A lane : lanes) maximum = lane > maximum ? lane : maximum;
    return maximum;
}

template <class T, class A = Accumulator<T>>
SoftmaxPart<A> row_part(const T* row, int64_t columns, A inverse_temperature) {
    const A maximum = row_maximum(row, columns);
    double sum = 0, weighted = 0;
    for (int64_t block = 0; block < columns; block += kBlock) {
        const int64_t end = columns - block < kBlock ? columns : block + kBlock;
        A sums[kLanes] = {}, products[kLanes] = {};
        int64_t v = block;
        for (; v + kLanes <= end; v += kLanes) {
            for (int k = 0; k < kLanes; ++k) {
                const ExpTerm<A> term = exp_term<A>(widen(row[v + k]), maximum, inverse_temperature);
                sums[k] += term.value;
                products[k] += term.weighted;
            }
        }
        for (int k = 0; v + k < end; ++k) {
            const ExpTerm<A> term = exp_term<A>(widen(row[v + k]), maximum, inverse_temperature);
            sums[k] += term.value;
            products[k] += term.weighted;
        }
        for (int k = 0; k < kLanes; ++k) {
            sum += static_cast<double>(sums[k]);
            weighted += static_cast<double>(products[k]);
        }
    }
    return {maximum, static_cast<A>(sum), static_cast<A>(weighted)};
}

template <class T, class A = Accumulator<T>>
void partials_of_rows(const LogitRows& in, A* partials, int64_t begin, int64_t end) {
    const A inverse_temperature = static_cast<A>(1.0 / in.temperature);
    for (int64_t i = begin; i < end; ++i) {
        const T* row = static_cast<const T*>(in.logits) + i * in.stride;
        const SoftmaxPart<A> part = row_part(row, in.columns, inverse_temperature);
        const int64_t column = in.targets[i] - in.first;
        partials[i] = part.maximum;
        partials[in.rows + i] = part.sum;
        partials[2 * in.rows + i] = part.weighted;
        partials[3 * in.rows + i] = column >= 0 && column < in.columns ? widen(row[column]) : minus_infinity<A>();
    }
}

template <class A>
void merge_rows(const PartialRows& in, A* merged, int64_t begin, int64_t end) {
    const A inverse_temperature = static_cast<A>(1.0 / in.temperature);
    const A* partials = static_cast<const A*>(in.partials);
    for (int64_t i = begin; i < end; ++i) {
        SoftmaxPart<A> whole = empty_part<A>();
        A target = minus_infinity<A>();
        for (int64_t rank = 0; rank < in.ranks; ++rank) {
            const A* part = partials + rank * 4 * in.rows + i;
            whole = merge<A>(whole, {part[0], part[in.rows], part[2 * in.rows]}, inverse_temperature);
            target = part[3 * in.rows] > target ? part[3 * in.rows] : target;
        }
        const TokenResult<A> token = token_result(whole, target, inverse_temperature);
        const bool ignored = in.targets[i] == kIgnoredTarget;
        merged[i] = ignored ? A(0) : token.logp;
        merged[in.rows + i] = ignored ? A(0) : token.entropy;
        merged[2 * in.rows + i] = whole.maximum;
        merged[3 * in.rows + i] = token.log_sum;
    }
}

template <class T, class A = Accumulator<T>>
void gradient_of_row(const T* row, T* out, int64_t columns, int64_t target, const TokenSlope<A>& slope) {
    const bool here = target >= 0 && target < columns;
    const A target_logit = here ? widen(row[target]) : A(0);  // read before `out`, which may be the row, is written
    for (int64_t tile = 0; tile < columns; tile += kTile) {
        const int count = static_cast<int>(columns - tile < kTile ? columns - tile : kTile);
        A values[kTile];
        for (int k = 0; k < count; ++k) values[k] = widen(row[tile + k]);
        for (int k = 0; k < count; ++k) values[k] = slope(values[k], A(0));
        for (int k = 0; k < count; ++k) out[tile + k] = Narrow<T>::from(values[k]);
    }
    if (here) out[target] = Narrow<T>::from(slope(target_logit, A(1)));
}

template <class T, class A = Accumulator<T>>
void gradient_of_rows(const LogitRows& in, const LogitGradient& gradient, int64_t begin, int64_t end) {
    const A* statistics = static_cast<const A*>(gradient.statistics);
    const A* upstream = static_cast<const A*>(gradient.upstream);
    const T zero = Narrow<T>::from(A(0));
    for (int64_t i = begin; i < end; ++i) {
        const T* row = static_cast<const T*>(in.logits) + i * in.stride;
        T* out = static_cast<T*>(gradient.out) + i * gradient.stride;
        const int64_t id = in.targets[i];
        const bool known = id >= 0 && id < gradient.vocabulary, ignored = id == kIgnoredTarget;
        const TokenSlope<A> slope{statistics[i],
                                  statistics[in.rows + i],
                                  statistics[2 * in.rows + i],
                                  known ? upstream[i] : A(0),
                                  ignored ? A(0) : upstream[in.rows + i],
                                  static_cast<A>(1.0 / in.temperature)};
        int64_t written = 0;
        if (!slope.zero()) {
            gradient_of_row(row, out, in.columns, id - in.first, slope);
            written = in.columns;
        }
        for (int64_t v = written; v < gradient.width; ++v) out[v] = zero;
    }
}

}  // namespace

void token_partials_cpu(const LogitRows& in, void* partials, int threads) {
    with_type(in.dtype, [&](auto type) {
        using T = decltype(type);
        parallel_rows(in.rows, in.columns, threads, [&](int64_t begin, int64_t end) {
            partials_of_rows<T>(in, static_cast<Accumulator<T>*>(partials), begin, end);
        });
    });
}

void token_merge_cpu(const PartialRows& in, void* merged, int threads) {
    with_type(in.dtype, [&](auto type) {
        using A = Accumulator<decltype(type)>;
        parallel_rows(in.rows, 16 * in.ranks, threads,
                      [&](int64_t begin, int64_t end) { merge_rows<A>(in, static_cast<A*>(merged), begin, end); });
    });
}

void token_gradient_cpu(const LogitRows& in, const LogitGradient& gradient, int threads) {
    with_type(in.dtype, [&](auto type) {
        using T = decltype(type);
        parallel_rows(in.rows, gradient.width, threads,
                      [&](int64_t begin, int64_t end) { gradient_of_rows<T>(in, gradient, begin, end); });
    });
}

}  // namespace gipo
