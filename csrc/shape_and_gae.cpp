// Op C on the CPU: rows in parallel, one reverse scan a row; 12 bytes read and 12 written a float32 token.
// Order of reduction: a row from its last token to its first in double, rows in order in double.
#include "shape_and_gae.h"

#include "dtypes.h"
#include "parallel.h"

namespace gipo {
namespace {

constexpr int kWorkOfAToken = 4;

template <class T, class A = Accumulator<T>>
void shape_row(const RewardRows& in, const ShapedRows& out, int64_t i) {
    const int64_t length = bounded_length(in.length[i], in.time), start = i * in.time;
    const T* behaviour = static_cast<const T*>(in.behaviour) + start;
    const T* reference = static_cast<const T*>(in.reference) + start;
    const T* values = static_cast<const T*>(in.values) + start;
    A* reward = static_cast<A*>(out.reward) + start;
    A* advantage = static_cast<A*>(out.advantage) + start;
    A* returns = static_cast<A*>(out.returns) + start;
    const A score = static_cast<const A*>(in.score)[i], weight = static_cast<const A*>(in.kl_weight)[i];
    const A gamma = static_cast<A>(in.gamma), decay = static_cast<A>(in.gamma * in.lambda);

    for (int64_t t = length; t < in.time; ++t) reward[t] = advantage[t] = returns[t] = 0;
    A later = 0, next_value = 0;
    double kl_sum = 0, sum = 0, squares = 0;
    for (int64_t t = length - 1; t >= 0; --t) {
        const A value = widen(values[t]);
        const A kl = kl_estimate<A>(widen(behaviour[t]) - widen(reference[t]), in.estimator);
        reward[t] = shaped_reward(kl, weight, score, t == length - 1);
        later = temporal_difference(reward[t], value, next_value, gamma) + decay * later;
        advantage[t] = later;
        returns[t] = later + value;
        next_value = value;
        kl_sum += kl;
        sum += later;
        squares += static_cast<double>(later) * later;
    }
    A* row_sums = static_cast<A*>(out.row_sums);
    static_cast<A*>(out.kl)[i] = static_cast<A>(kl_sum);
    row_sums[i] = static_cast<A>(length);
    row_sums[in.batch + i] = static_cast<A>(sum);
    row_sums[2 * in.batch + i] = static_cast<A>(squares);
}

}  // namespace

void shape_and_gae_cpu(const RewardRows& in, const ShapedRows& out, int threads) {
    with_type(in.dtype, [&](auto type) {
        using T = decltype(type);
        parallel_rows(in.batch, kWorkOfAToken * in.time, threads, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) shape_row<T>(in, out, i);
        });
        const auto* row_sums = static_cast<const Accumulator<T>*>(out.row_sums);
        for (int field = 0; field < 3; ++field) {
            double total = 0;
            for (int64_t i = 0; i < in.batch; ++i) total += static_cast<double>(row_sums[field * in.batch + i]);
            out.totals[field] = total;
        }
    });
}

}  // namespace gipo
