// Build and test: pip install -e . && pytest tests/ops/test_group_objective.py
//
// Op B on the CPU, over a range of sequences; compiled for every instruction set (cpu.h). One pass over four
// [batch, time] inputs, 16 bytes a float32 token forward and 20 backward, whatever the number of groups; nothing of
// size [batch, time] is kept between the two.
//
// Order of reduction: a row in 16 interleaved lanes inside blocks of 512 tokens, lanes in order in double, blocks in
// order in double; the group sums in row order in double (cpu.cpp).
#include "cpu.h"
#include "lanes.h"

namespace gipo {
namespace GIPO_ISA {
namespace {

constexpr int64_t kBlock = 512;

template <class T>
struct Tokens {
    using A = Accumulator<T>;
    const T *logp, *behaviour, *reference, *advantage;

    GIPO_HD Tokens(const ObjectiveRows& in, int64_t start)
        : logp(static_cast<const T*>(in.logp) + start),
          behaviour(static_cast<const T*>(in.behaviour) + start),
          reference(static_cast<const T*>(in.reference) + start),
          advantage(static_cast<const T*>(in.advantage) + start) {}
};

// Sixteen tokens, or `count` of them with neutral ones after them: of ratio 1, advantage 0 and KL 0.
template <class T, class A = Accumulator<T>>
struct Run {
    Lanes<A> logp, behaviour, reference, advantage;

    GIPO_HD Run(const Tokens<T>& at, int64_t t)
        : logp(load_lanes(at.logp + t)),
          behaviour(load_lanes(at.behaviour + t)),
          reference(load_lanes(at.reference + t)),
          advantage(load_lanes(at.advantage + t)) {}
    GIPO_HD Run(const Tokens<T>& at, int64_t t, int64_t count)
        : logp(load_lanes(at.logp + t, count, zero())),
          behaviour(load_lanes(at.behaviour + t, count, zero())),
          reference(load_lanes(at.reference + t, count, zero())),
          advantage(load_lanes(at.advantage + t, count, zero())) {}
    static GIPO_HD T zero() { return Narrow<T>::from(A(0)); }
};

// What is summed over the tokens of a sequence; its largest ratio is not a sum.
enum Sum { kSignalSum, kSurrogateSum, kKlSum, kClippedSum, kBehaviourKlSum, kSums };

template <class A>
struct LaneSums {
    Lanes<A> field[kSums];

    GIPO_HD LaneSums() {
        for (Lanes<A>& lanes : field) lanes = Lanes<A>(A(0));
    }
    GIPO_HD void add(const ObjectiveToken<Lanes<A>>& token) {
        field[kSignalSum] += token.signal;
        field[kSurrogateSum] += token.surrogate;
        field[kKlSum] += token.kl;
        field[kClippedSum] += token.clipped;
        field[kBehaviourKlSum] += token.behaviour_kl;
    }
};

// Calls `visit` with the formula. Of the one for float32 tokens, which training has, the compiler knows the estimator:
// its choice is out of the loops, and what one does not need takes no registers.
template <class T, class Visit>
GIPO_HD void with_formula(const ObjectiveOptions& options, const Visit& visit) {
    ObjectiveFormula<Lanes<Accumulator<T>>> formula(options);
    if constexpr (sizeof(T) == sizeof(float)) {
        const auto with_estimator = [&](int estimator) GIPO_INLINE {
            formula.estimator = estimator;
            visit(formula);
        };
        if (options.estimator == kK1) return with_estimator(kK1);
        if (options.estimator == kK2) return with_estimator(kK2);
        with_estimator(kK3);
    } else {
        visit(formula);
    }
}

template <class T, class A = Accumulator<T>>
GIPO_HD void forward(const ObjectiveFormula<Lanes<A>>& formula, const ObjectiveRows& in, const void* behaviour_signal,
                     void* out, int64_t begin, int64_t end) {
    A* sequences = static_cast<A*>(out);
    for (int64_t i = begin; i < end; ++i) {
        const int64_t length = bounded_length(in.length[i], in.time);
        const Tokens<T> at(in, i * in.time);
        double totals[kSums] = {};
        Lanes<A> ratio(A(0));
        for (int64_t block = 0; block < length; block += kBlock) {
            const int64_t stop = length - block < kBlock ? length : block + kBlock;
            LaneSums<A> sums;
            const auto add = [&](const Run<T>& run) GIPO_INLINE {
                const auto token = formula.token(run.logp, run.behaviour, run.reference, run.advantage);
                sums.add(token);
                return token.ratio;
            };
            int64_t t = block;
            for (; t + kLanes <= stop; t += kLanes) ratio = larger(ratio, add(Run<T>(at, t)));
            if (t < stop) {
                const Lanes<A> some = add(Run<T>(at, t, stop - t));
                for (int64_t k = 0; k < stop - t; ++k) ratio.set(0, larger(ratio.lane(0), some.lane(k)));
            }
            for (int field = 0; field < kSums; ++field) {
                for (int k = 0; k < kLanes; ++k) totals[field] += static_cast<double>(sums.field[field].lane(k));
            }
        }
        A largest = 0;
        for (int k = 0; k < kLanes; ++k) largest = larger(largest, ratio.lane(k));
        const ObjectiveFormula<A> of_sequence(in.options);
        sequences[kSignal * in.batch + i] = of_sequence.sequence_signal(
            static_cast<A>(totals[kSignalSum]), static_cast<const A*>(behaviour_signal)[i], length);
        sequences[kSurrogate * in.batch + i] = static_cast<A>(totals[kSurrogateSum]);
        sequences[kKl * in.batch + i] = static_cast<A>(totals[kKlSum]);
        sequences[kClipped * in.batch + i] = static_cast<A>(totals[kClippedSum]);
        sequences[kRatioMax * in.batch + i] = largest;
        sequences[kBehaviourKl * in.batch + i] = static_cast<A>(totals[kBehaviourKlSum]);
    }
}

template <class T>
void forward_rows(const ObjectiveRows& in, const void* behaviour_signal, void* out, int64_t begin, int64_t end) {
    using A = Accumulator<T>;
    with_formula<T>(in.options, [&](const ObjectiveFormula<Lanes<A>>& formula)
                                    GIPO_INLINE { forward<T>(formula, in, behaviour_signal, out, begin, end); });
}

template <class T, class A = Accumulator<T>>
GIPO_HD void backward(const ObjectiveFormula<Lanes<A>>& formula, const ObjectiveRows& in,
                      const ObjectiveGradient& gradient, int64_t begin, int64_t end) {
    const ObjectiveFormula<A> of_sequence(in.options);
    for (int64_t i = begin; i < end; ++i) {
        const int64_t length = bounded_length(in.length[i], in.time);
        const SequenceSlope<A> slope = sequence_slope<A>(in, gradient, i, length, of_sequence);
        const Tokens<T> at(in, i * in.time);
        T* out = static_cast<T*>(gradient.logp_out) + i * in.time;
        const auto gradient_of = [&](const Run<T>& run) GIPO_INLINE {
            return formula.slope(run.logp, run.behaviour, run.reference, run.advantage, slope.signal, slope.surrogate,
                                 slope.kl);
        };
        int64_t t = 0;
        for (; t + kLanes <= length; t += kLanes) store_lanes(out + t, gradient_of(Run<T>(at, t)));
        if (t < length) store_lanes(out + t, length - t, gradient_of(Run<T>(at, t, length - t)));
        for (t = length; t < in.time; ++t) out[t] = Narrow<T>::from(A(0));

        A* probs_out = static_cast<A*>(gradient.probs_out) + i * in.groups;
        for (int64_t g = 0; g < in.groups; ++g) probs_out[g] = probability_slope<A>(gradient, i, g);
    }
}

template <class T>
void backward_rows(const ObjectiveRows& in, const ObjectiveGradient& gradient, int64_t begin, int64_t end) {
    using A = Accumulator<T>;
    with_formula<T>(in.options, [&](const ObjectiveFormula<Lanes<A>>& formula)
                                    GIPO_INLINE { backward<T>(formula, in, gradient, begin, end); });
}

}  // namespace

extern const ObjectiveRowKernels objective_rows = {
    {forward_rows<float>, forward_rows<BFloat16>, forward_rows<Float16>, forward_rows<double>},
    {backward_rows<float>, backward_rows<BFloat16>, backward_rows<Float16>, backward_rows<double>},
};

}  // namespace GIPO_ISA
}  // namespace gipo
