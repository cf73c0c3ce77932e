// A row of logits on the CPU, sixteen at a time: what ops A and D read of it, and the order in which their lanes are
// brought together.
#pragma once

#include "lanes.h"

namespace gipo {
namespace GIPO_ISA {
namespace {

// Up to 16 logits from column v; past the end, logits that weigh nothing.
template <class T, class A = Accumulator<T>>
GIPO_HD Lanes<A> logits_at(const T* row, int64_t v, int64_t end) {
    if (v + kLanes <= end) return load_lanes(row + v);
    return load_lanes(row + v, end - v, Narrow<T>::from(minus_infinity<A>()));
}

// The largest logits of the lanes of columns [begin, end). A NaN is no maximum, but stays in the sums.
template <class T, class A = Accumulator<T>>
GIPO_HD Lanes<A> lane_maxima(const T* row, int64_t begin, int64_t end) {
    Lanes<A> first(minus_infinity<A>()), second = first;  // two, so that one comparison need not wait for the other
    int64_t v = begin;
    for (; v + 2 * kLanes <= end; v += 2 * kLanes) {
        const Lanes<A> a = load_lanes(row + v), b = load_lanes(row + v + kLanes);
        first = select(a > first, a, first);
        second = select(b > second, b, second);
    }
    for (; v < end; v += kLanes) {
        const Lanes<A> a = logits_at(row, v, end);
        first = select(a > first, a, first);
    }
    return select(second > first, second, first);
}

template <class T, class A = Accumulator<T>>
GIPO_HD A maximum_of(const T* row, int64_t begin, int64_t end) {
    const Lanes<A> maxima = lane_maxima(row, begin, end);
    A maximum = maxima.lane(0);
    for (int k = 1; k < kLanes; ++k) maximum = maxima.lane(k) > maximum ? maxima.lane(k) : maximum;
    return maximum;
}

template <class A>
GIPO_HD double in_order(const Lanes<A>& lanes) {
    double total = 0;
    for (int k = 0; k < kLanes; ++k) total += static_cast<double>(lanes.lane(k));
    return total;
}

}  // namespace
}  // namespace GIPO_ISA
}  // namespace gipo
