// Where a list of numbers, from the largest to the smallest, has reached a given mass: the cut of top-k (every number
// weighs 1) and of top-p (a number weighs its probability), without sorting the list. CPU only.
//
// The numbers are counted in bins of equal width between the largest and the smallest, in one pass over the list; the
// bin in which the goal is reached becomes the next range, until it holds few numbers, which are sorted, or equal ones.
// Order of reduction: the masses of a bin in the order of the list, bins from the largest numbers on, all in double.
#pragma once

#include "numbers.h"

namespace gipo {

// Numbers above `value` stay, and the first `ties` of those equal to it, in the order of the list.
template <class A>
struct Cut {
    A value;
    int64_t ties;

    // Whether the next number of the list stays.
    GIPO_HD bool keeps(A number) {
        if (number > value) return true;
        return number == value && ties-- > 0;
    }
};

constexpr int kBins = 512;
constexpr int kFew = 32;  // as many are sorted

// Numbers from `high` down to `low` in bins 0 to kBins - 1; a larger number is never in a later bin. In double, where
// the difference of two floats neither overflows nor vanishes; halved, so that of doubles does not overflow either.
struct Bins {
    double high, density;

    GIPO_HD Bins(double high, double low) : high(high / 2), density((kBins - 1) / (high / 2 - low / 2)) {}
    GIPO_HD int of(double number) const { return static_cast<int>((high - number / 2) * density); }
};

// The cut at which `count` numbers reach the mass `goal` > 0: a number stays if those before it, larger or equal and
// earlier in the list, weigh less than the goal. The numbers are finite. weights: null for ones.
template <class A>
GIPO_HD Cut<A> cut_at(const A* numbers, const A* weights, int64_t count, double goal) {
    constexpr int64_t kAll = INT64_MAX;
    const auto weight = [&](int64_t k)
                            GIPO_INLINE { return weights == nullptr ? 1.0 : static_cast<double>(weights[k]); };
    A high = numbers[0], low = numbers[0];
    for (int64_t k = 1; k < count; ++k) {
        high = numbers[k] > high ? numbers[k] : high;
        low = numbers[k] < low ? numbers[k] : low;
    }
    double above = 0;
    for (;;) {
        const Bins bins(static_cast<double>(high), static_cast<double>(low));
        if (!(bins.density < HUGE_VAL)) break;  // one number, as often as it comes
        double mass[kBins] = {};
        int32_t members[kBins] = {};
        for (int64_t k = 0; k < count; ++k) {
            if (numbers[k] > high || numbers[k] < low) continue;
            const int bin = bins.of(static_cast<double>(numbers[k]));
            mass[bin] += weight(k);
            ++members[bin];
        }
        int bin = 0;
        while (bin < kBins && above + mass[bin] < goal) above += mass[bin++];
        if (bin == kBins) return {low, kAll};

        const int64_t found = members[bin];
        A few[kFew];
        double few_weights[kFew];
        int64_t gathered = 0;
        A next_high = low, next_low = high;
        for (int64_t k = 0; k < count; ++k) {
            const A number = numbers[k];
            if (number > high || number < low || bins.of(static_cast<double>(number)) != bin) continue;
            next_high = number > next_high ? number : next_high;
            next_low = number < next_low ? number : next_low;
            if (found > kFew) continue;
            int64_t place = gathered++;  // behind those that are larger or equal
            for (; place > 0 && few[place - 1] < number; --place) {
                few[place] = few[place - 1];
                few_weights[place] = few_weights[place - 1];
            }
            few[place] = number;
            few_weights[place] = weight(k);
        }
        if (found <= kFew) {
            int64_t last = 0;
            while (last + 1 < found && above + few_weights[last] < goal) above += few_weights[last++];
            int64_t ties = 1;
            while (ties <= last && few[last - ties] == few[last]) ++ties;
            return {few[last], ties};
        }
        high = next_high;
        low = next_low;
    }
    int64_t equal = 0, first = 0;
    for (int64_t k = count - 1; k >= 0; --k) {
        if (numbers[k] != high) continue;
        ++equal;
        first = k;
    }
    const double wanted = (goal - above) / weight(first);  // as many, rounded up
    int64_t ties = equal;
    if (wanted <= static_cast<double>(equal)) {
        ties = static_cast<int64_t>(wanted);
        ties += static_cast<double>(ties) < wanted;
    }
    return {high, ties};
}

}  // namespace gipo
