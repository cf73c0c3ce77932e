// Exactly sized inputs and outputs for the kernels, in every element type, at sizes around their block widths. Buffers
// are separate heap blocks, so that a sanitizer sees the first element read or written outside.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "group_objective.h"
#include "shape_and_gae.h"
#include "token_objective.h"
#include "token_statistics.h"

namespace gipo {

inline std::mt19937 random_bits(7);

template <class T>
std::vector<T> normal(size_t count, double scale, double shift = 0) {
    std::normal_distribution<double> draw(shift, scale);
    std::vector<T> values(count);
    for (T& value : values) value = Narrow<T>::from(static_cast<Accumulator<T>>(draw(random_bits)));
    return values;
}

template <class T>
constexpr DType kCode = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;
template <>
constexpr DType kCode<BFloat16> = DType::kBFloat16;
template <>
constexpr DType kCode<Float16> = DType::kFloat16;

// Everything of one call of op A: forward over two shards, merge, gradient of both, by the CPU or another back end.
template <class T>
struct TokenCase {
    using A = Accumulator<T>;
    int64_t rows, columns, padding, extra, offset;
    std::vector<T> logits;
    std::vector<int64_t> targets;
    std::vector<A> upstream;

    TokenCase(int64_t rows, int64_t columns, int64_t padding, int64_t extra, int64_t offset)
        : rows(rows), columns(columns), padding(padding), extra(extra), offset(offset) {
        logits = normal<T>(offset + 2 * rows * (columns + extra), 4.0);
        for (int64_t i = 0; i < rows; ++i) targets.push_back(i % 5 == 4 ? kIgnoredTarget : (i * 37) % vocabulary());
        upstream = normal<A>(2 * rows, 1.0);
    }
    int64_t vocabulary() const { return 2 * columns - padding; }

    template <class Results, class Partials, class Merge, class Gradient, class Last>
    std::vector<std::vector<A>> run(Results results, Partials partials, Merge merge, Gradient gradient,
                                    Last last) const {
        const double temperature = 0.8;
        std::vector<A> parts(2 * kPartialFields * rows), logp(rows), entropy(rows), statistics(kRowFields * rows);
        std::vector<A> alone_logp(rows), alone_entropy(rows), alone_statistics(kRowFields * rows);
        std::vector<T> gradients(2 * rows * columns, Narrow<T>::from(A(9)));
        LogitRows shards[2];
        for (int shard = 0; shard < 2; ++shard) {
            const T* start = logits.data() + offset + shard * rows * (columns + extra);
            shards[shard] = {
                start,          kCode<T>,        rows,       columns - (shard ? padding : 0), columns + extra,
                targets.data(), shard * columns, temperature};
            partials(shards[shard], parts.data() + shard * kPartialFields * rows, last);
        }
        merge(PartialRows{parts.data(), kCode<A>, 2, rows, targets.data(), temperature},
              TokenResults{logp.data(), entropy.data(), statistics.data()}, last);
        results(shards[0], TokenResults{alone_logp.data(), alone_entropy.data(), alone_statistics.data()}, last);
        for (int shard = 0; shard < 2; ++shard) {
            gradient(shards[shard],
                     LogitGradient{columns, vocabulary(), entropy.data(), statistics.data(), upstream.data(),
                                   rows % 2 ? upstream.data() + rows : nullptr,
                                   gradients.data() + shard * rows * columns, columns},
                     last);
        }
        std::vector<A> wide;
        for (const T value : gradients) wide.push_back(widen(value));
        return {logp, entropy, statistics, alone_logp, alone_entropy, alone_statistics, wide};
    }
};

// Gradients of op B's outputs, one behind the other in `all`; `number` says which of them was not used, if any.
template <class A>
ObjectiveUpstream upstream_of(const std::vector<A>& all, int64_t batch, int64_t groups, int64_t number) {
    const A* of = all.data();
    ObjectiveUpstream upstream{
        of, of + batch, of + 2 * batch, of + 3 * batch, of + 3 * batch + groups, of + 3 * batch + 2 * groups};
    const void** const fields[] = {&upstream.signal, &upstream.surrogate, &upstream.kl,
                                   &upstream.mass,   &upstream.weighted,  &upstream.weighted_kl};
    if (number % 8 < 6) *fields[number % 8] = nullptr;
    return upstream;
}

// Op B, forward and backward, and op C on the same tokens.
template <class T>
struct SequenceCase {
    using A = Accumulator<T>;
    int64_t batch, time, groups;
    int estimator, signal_form;
    std::vector<T> logp, behaviour, reference, advantage;
    std::vector<int64_t> length;
    std::vector<A> probs, behaviour_signal, kl_weight, upstream;

    SequenceCase(int64_t batch, int64_t time, int64_t groups, int estimator, int signal_form)
        : batch(batch), time(time), groups(groups), estimator(estimator), signal_form(signal_form) {
        const size_t tokens = batch * time;
        logp = normal<T>(tokens, 0.4, -2.0);
        behaviour = normal<T>(tokens, 0.4, -2.0);
        reference = normal<T>(tokens, 0.4, -2.0);
        advantage = normal<T>(tokens, 1.0);
        for (int64_t i = 0; i < batch; ++i) length.push_back(i % 3 == 2 ? time : (i * 131) % (time + 1));
        probs = normal<A>(batch * groups, 0.1, 0.5);
        behaviour_signal = normal<A>(batch, 1.0);
        kl_weight = normal<A>(batch, 0.2, 0.5);
        upstream = normal<A>(3 * batch + 2 * groups + 1, 1.0);
    }

    template <class Forward, class Backward, class Shape, class Last>
    std::vector<std::vector<A>> run(Forward forward, Backward backward, Shape shape, Last last) const {
        const ObjectiveRows in{logp.data(),
                               behaviour.data(),
                               reference.data(),
                               advantage.data(),
                               kCode<T>,
                               batch,
                               time,
                               groups,
                               length.data(),
                               probs.data(),
                               kl_weight.data(),
                               {0.2, estimator, signal_form}};
        std::vector<A> sequences(kSequenceFields * batch), sums(kGroupFields * groups + 1), probs_out(batch * groups);
        std::vector<T> logp_out(batch * time, Narrow<T>::from(A(9)));
        forward(in, behaviour_signal.data(), sequences.data(), sums.data(), last);
        backward(in,
                 ObjectiveGradient{sequences.data(), upstream_of(upstream, batch, groups, time), logp_out.data(),
                                   probs_out.data()},
                 last);
        const RewardRows rewards{
            behaviour.data(),        reference.data(), advantage.data(), kCode<T>, batch, time,
            behaviour_signal.data(), length.data(),    kl_weight.data(), 0.999,    0.998, estimator};
        std::vector<A> shaped(3 * batch * time, A(9)), kl(batch), row_sums(kSumFields * batch);
        std::vector<double> totals(kSumFields);
        const int64_t tokens = batch * time;
        shape(rewards,
              ShapedRows{shaped.data(), shaped.data() + tokens, shaped.data() + 2 * tokens, kl.data(), row_sums.data(),
                         totals.data()},
              last);
        std::vector<A> wide;
        for (const T value : logp_out) wide.push_back(widen(value));
        return {sequences, sums, wide, probs_out, shaped, kl, row_sums, {totals.begin(), totals.end()}};
    }
};

// Ops A and B joined, forward and backward, into a buffer of its own or over the logits.
template <class T>
struct JoinedCase {
    using A = Accumulator<T>;
    int64_t columns, padding, groups, chunk, rows = 0, time = 0;
    bool inplace;
    std::vector<int64_t> length, start, targets;
    std::vector<T> logits;
    std::vector<A> behaviour, reference, advantage, probs, behaviour_signal, kl_weight, upstream, of_entropy;

    JoinedCase(std::vector<int64_t> lengths, int64_t columns, int64_t padding, int64_t groups, int64_t chunk)
        : columns(columns), padding(padding), groups(groups), chunk(chunk), inplace(chunk % 2 == 0), length(lengths) {
        for (const int64_t count : length) {
            start.push_back(rows);
            rows += count;
            time = count > time ? count : time;
        }
        const size_t batch = length.size(), tokens = batch * time;
        logits = normal<T>(rows * (columns + padding), 1.0);
        for (int64_t i = 0; i < rows; ++i) targets.push_back(i * 37 % columns);
        const double guess = -std::log(static_cast<double>(columns));
        behaviour = normal<A>(tokens, 0.4, guess);
        reference = normal<A>(tokens, 0.4, guess);
        advantage = normal<A>(tokens, 1.0);
        probs = normal<A>(batch * groups, 0.1, 0.5);
        behaviour_signal = normal<A>(batch, 1.0);
        kl_weight = normal<A>(batch, 0.2, 0.5);
        upstream = normal<A>(3 * batch + 2 * groups + 1, 1.0);
        of_entropy = normal<A>(batch, 1.0);
    }

    template <class Forward, class Backward, class Last>
    std::vector<std::vector<A>> run(Forward forward, Backward backward, Last last) const {
        const int64_t batch = length.size(), width = columns + padding;
        std::vector<T> own = logits, gradients(inplace ? 0 : rows * width, Narrow<T>::from(A(9)));
        std::vector<A> statistics(kTokenFields * rows), sequences(kJoinedFields * batch);
        std::vector<A> chunks(kJoinedFields * batch * ((time + chunk - 1) / chunk));
        std::vector<A> sums(kGroupFields * groups + 1), probs_out(batch * groups);
        const JoinedRows in{{own.data(), kCode<T>, rows, columns, width, targets.data(), 0, 0.8},
                            {nullptr,
                             behaviour.data(),
                             reference.data(),
                             advantage.data(),
                             kCode<A>,
                             batch,
                             time,
                             groups,
                             length.data(),
                             probs.data(),
                             kl_weight.data(),
                             {0.2, int(chunk % 3), int(groups % 3)}},
                            start.data(),
                            chunk};
        forward(in, behaviour_signal.data(),
                JoinedResults{statistics.data(), chunks.data(), sequences.data(), sums.data()}, last);
        T* out = inplace ? own.data() : gradients.data();
        backward(
            in,
            JoinedGradient{{sequences.data(), upstream_of(upstream, batch, groups, rows), nullptr, probs_out.data()},
                           statistics.data(),
                           chunk == 3 ? nullptr : of_entropy.data(),
                           width,
                           out,
                           width},
            last);
        std::vector<A> wide;
        for (int64_t i = 0; i < rows * width; ++i) wide.push_back(widen(out[i]));
        return {statistics, sequences, sums, probs_out, wide};
    }
};

// Largest |a - b| / (1 + |b|); a NaN on one side only counts as infinite.
template <class A>
double difference(const std::vector<std::vector<A>>& a, const std::vector<std::vector<A>>& b) {
    double worst = 0;
    for (size_t k = 0; k < a.size(); ++k) {
        for (size_t i = 0; i < a[k].size(); ++i) {
            const double x = a[k][i], y = b[k][i];
            if (std::isnan(x) && std::isnan(y)) continue;
            const double distance = x == y ? 0.0 : std::fabs(x - y) / (1 + std::fabs(y));
            worst = distance <= worst ? worst : (std::isnan(distance) ? INFINITY : distance);
        }
    }
    return worst;
}

inline void require(bool condition, const char* what, double value) {
    if (condition) return;
    std::fprintf(stderr, "%s: %g\n", what, value);
    std::exit(1);
}

// Calls visit(case) for op A, and for ops B and C, over sizes around every width that the kernels
// step by.
template <class T, class VisitTokens, class VisitSequences>
void for_each_case(VisitTokens&& tokens, VisitSequences&& sequences) {
    int k = 0;
    for (const int64_t columns : {1, 7, 8, 9, 17, 255, 1025, 2051}) {
        tokens(TokenCase<T>(5, columns, columns / 3, k % 4, k % 3));
        ++k;
    }
    tokens(TokenCase<T>(0, 5, 0, 0, 0));
    tokens(TokenCase<T>(3, 4, 4, 0, 0));  // the second shard is padding only
    for (const int64_t time : {0, 1, 15, 16, 17, 255, 256, 257, 700}) {
        sequences(SequenceCase<T>(4, time, 1 + k % 3, k % 3, k / 3 % 3));
        ++k;
    }
    sequences(SequenceCase<T>(0, 4, 2, 0, 0));
    sequences(SequenceCase<T>(260, 3, 2, 1, 0));
}

// The same for ops A and B joined.
template <class T, class Visit>
void for_each_joined_case(Visit&& visit) {
    for (const int64_t chunk : {1, 2, 3, 4, 32}) {
        visit(JoinedCase<T>({3, 0, 1, 9, 4}, 680 * chunk % 4111 + 11, chunk % 4, 1 + chunk % 3, chunk));
    }
    visit(JoinedCase<T>({}, 5, 0, 2, 4));
    visit(JoinedCase<T>({0, 0}, 5, 3, 2, 4));
    visit(JoinedCase<T>({260}, 5, 1, 3, 1));  // more chunks than threads
}

}  // namespace gipo
