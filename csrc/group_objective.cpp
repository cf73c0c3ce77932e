// Op B on the CPU: one pass over four [batch, time] inputs, 16 bytes a float32 token forward and 20 backward, whatever
// the number of groups; nothing of size [batch, time] is kept between the two.
//
// Order of reduction: a row in 16 interleaved lanes of double, lanes in order; the group sums in row order in double.
#include "group_objective.h"

#include "parallel.h"

namespace gipo {
namespace {

constexpr int kLanes = 16;
constexpr int kWorkOfAToken = 8;  // a token costs about that many simple elements

template <class A>
struct LaneSums {
    double score[kLanes] = {}, surrogate[kLanes] = {}, kl[kLanes] = {}, clipped[kLanes] = {}, behaviour_kl[kLanes] = {};
    A ratio[kLanes] = {};

    GIPO_HD void add(int k, const ObjectiveToken<A>& token) {
        score[k] += static_cast<double>(token.score);
        surrogate[k] += static_cast<double>(token.surrogate);
        kl[k] += static_cast<double>(token.kl);
        clipped[k] += static_cast<double>(token.clipped);
        behaviour_kl[k] += static_cast<double>(token.behaviour_kl);
        ratio[k] = larger(ratio[k], token.ratio);
    }
};

double in_order(const double (&lanes)[kLanes]) {
    double total = 0;
    for (const double lane : lanes) total += lane;
    return total;
}

template <class T, class A = Accumulator<T>>
void forward_row(const ObjectiveRows& in, const ObjectiveFormula<A>& formula, const A* signal, A* sequences,
                 int64_t i) {
    const int64_t length = bounded_length(in.length[i], in.time), start = i * in.time;
    const T* logp = static_cast<const T*>(in.logp) + start;
    const T* behaviour = static_cast<const T*>(in.behaviour) + start;
    const T* reference = static_cast<const T*>(in.reference) + start;
    const T* advantage = static_cast<const T*>(in.advantage) + start;
    const auto token = [&](int64_t t) {
        return formula.token(widen(logp[t]), widen(behaviour[t]), widen(reference[t]), widen(advantage[t]));
    };
    LaneSums<A> sums;
    int64_t t = 0;
    for (; t + kLanes <= length; t += kLanes) {
        for (int k = 0; k < kLanes; ++k) sums.add(k, token(t + k));
    }
    for (int k = 0; t + k < length; ++k) sums.add(k, token(t + k));

    A ratio = 0;
    for (const A lane : sums.ratio) ratio = larger(ratio, lane);
    const double values[] = {0, in_order(sums.surrogate),   in_order(sums.kl), in_order(sums.clipped),
                             0, in_order(sums.behaviour_kl)};
    for (int field = 0; field < 6; ++field) sequences[field * in.batch + i] = static_cast<A>(values[field]);
    sequences[i] = formula.sequence_score(static_cast<A>(in_order(sums.score)), signal[i], length);
    sequences[4 * in.batch + i] = ratio;
}

template <class A>
void group_sums(const ObjectiveRows& in, const A* sequences, A* sums) {
    const A* probs = static_cast<const A*>(in.probs);
    const A* weight = static_cast<const A*>(in.weight);
    std::vector<double> totals(2 * in.groups + 1, 0.0);
    for (int64_t i = 0; i < in.batch; ++i) {
        const double score = sequences[i], kl = sequences[2 * in.batch + i];
        for (int64_t g = 0; g < in.groups; ++g) {
            const double p = probs[i * in.groups + g];
            totals[g] += p;
            totals[in.groups + g] += p * score;
        }
        totals[2 * in.groups] += static_cast<double>(weight[i]) * kl;
    }
    for (size_t k = 0; k < totals.size(); ++k) sums[k] = static_cast<A>(totals[k]);
}

template <class T, class A = Accumulator<T>>
void backward_row(const ObjectiveRows& in, const ObjectiveGradient& gradient, const ObjectiveFormula<A>& formula,
                  int64_t i) {
    const int64_t length = bounded_length(in.length[i], in.time), start = i * in.time;
    const SequenceSlope<A> slope = sequence_slope<A>(in, gradient, i, length, formula);
    const T* __restrict logp = static_cast<const T*>(in.logp) + start;
    const T* __restrict behaviour = static_cast<const T*>(in.behaviour) + start;
    const T* __restrict reference = static_cast<const T*>(in.reference) + start;
    const T* __restrict advantage = static_cast<const T*>(in.advantage) + start;
    T* __restrict out = static_cast<T*>(gradient.logp_out) + start;
    for (int64_t t = 0; t < length; ++t) {
        const A value = formula.slope(widen(logp[t]), widen(behaviour[t]), widen(reference[t]), widen(advantage[t]),
                                      slope.score, slope.surrogate, slope.kl);
        out[t] = Narrow<T>::from(value);
    }
    for (int64_t t = length; t < in.time; ++t) out[t] = Narrow<T>::from(A(0));

    const A score = static_cast<const A*>(gradient.score)[i];
    const A* of_sums = static_cast<const A*>(gradient.of_sums);
    A* probs_out = static_cast<A*>(gradient.probs_out) + i * in.groups;
    for (int64_t g = 0; g < in.groups; ++g) probs_out[g] = of_sums[g] + of_sums[in.groups + g] * score;
}

}  // namespace

void group_objective_cpu(const ObjectiveRows& in, const void* signal, void* sequences, void* sums, int threads) {
    with_type(in.dtype, [&](auto type) {
        using T = decltype(type);
        using A = Accumulator<T>;
        const ObjectiveFormula<A> formula(in.options);
        parallel_rows(in.batch, kWorkOfAToken * in.time, threads, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                forward_row<T>(in, formula, static_cast<const A*>(signal), static_cast<A*>(sequences), i);
            }
        });
        group_sums<A>(in, static_cast<const A*>(sequences), static_cast<A*>(sums));
    });
}

void group_objective_gradient_cpu(const ObjectiveRows& in, const ObjectiveGradient& gradient, int threads) {
    with_type(in.dtype, [&](auto type) {
        using T = decltype(type);
        const ObjectiveFormula<Accumulator<T>> formula(in.options);
        parallel_rows(in.batch, kWorkOfAToken * in.time, threads, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) backward_row<T>(in, gradient, formula, i);
        });
    });
}

}  // namespace gipo
