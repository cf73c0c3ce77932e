// Build and test: pip install -e . && pytest tests/ops/test_token_objective.py
//
// Ops A and B joined on the CPU: the kernels of both, one after the other, over numbers of a token each (the logits are
// read once forward, read and written once backward). Threads and orders of reduction are theirs.
#include "token_objective.h"

#include <vector>

#include "dtypes.h"

namespace gipo {
namespace {

// Calls visit(row of the logits, element of a [batch, time] buffer, sequence) for every token.
template <class Visit>
void for_each_token(const JoinedRows& in, const Visit& visit) {
    for (int64_t i = 0; i < in.tokens.batch; ++i) {
        const int64_t count = token_count(in, i);
        for (int64_t t = 0; t < count; ++t) visit(in.start[i] + t, i * in.tokens.time + t, i);
    }
}

// Op B's input with the log-probs that `statistics` holds; `logp` [batch, time] keeps them.
template <class A>
ObjectiveRows with_log_probs(const JoinedRows& in, const A* statistics, std::vector<A>& logp) {
    logp.resize(in.tokens.batch * in.tokens.time);
    for_each_token(in, [&](int64_t row, int64_t element, int64_t) {
        logp[element] = statistics[kTokenLogp * in.logits.rows + row];
    });
    ObjectiveRows tokens = in.tokens;
    tokens.logp = logp.data();
    return tokens;
}

template <class A>
void forward(const JoinedRows& in, const void* behaviour_signal, const JoinedResults& out, int threads) {
    const int64_t rows = in.logits.rows, batch = in.tokens.batch;
    std::vector<A> logp;
    A* statistics = static_cast<A*>(out.statistics);
    token_statistics_cpu(
        in.logits,
        {statistics + kTokenLogp * rows, statistics + kTokenEntropy * rows, statistics + kTokenMaximum * rows},
        threads);
    group_objective_cpu(with_log_probs<A>(in, statistics, logp), behaviour_signal, out.sequences, out.sums, threads);
    std::vector<double> entropy(batch, 0.0);
    for_each_token(in, [&](int64_t row, int64_t, int64_t i) { entropy[i] += statistics[kTokenEntropy * rows + row]; });
    A* sequences = static_cast<A*>(out.sequences);
    for (int64_t i = 0; i < batch; ++i) sequences[kEntropySum * batch + i] = static_cast<A>(entropy[i]);
}

template <class A>
void backward(const JoinedRows& in, const JoinedGradient& gradient, int threads) {
    const int64_t rows = in.logits.rows;
    const A* statistics = static_cast<const A*>(gradient.statistics);
    std::vector<A> logp, slopes(in.tokens.batch * in.tokens.time), upstream(2 * rows);
    ObjectiveGradient objective = gradient.objective;
    objective.logp_out = slopes.data();
    group_objective_gradient_cpu(with_log_probs(in, statistics, logp), objective, threads);
    for_each_token(in, [&](int64_t row, int64_t element, int64_t i) {
        upstream[row] = slopes[element];
        upstream[rows + row] = upstream_at<A>(gradient.of_entropy, i);
    });
    token_gradient_cpu(
        in.logits,
        {gradient.width, in.logits.columns, statistics + kTokenEntropy * rows, statistics + kTokenMaximum * rows,
         upstream.data(), upstream.data() + rows, gradient.out, gradient.stride},
        threads);
}

}  // namespace

void token_objective_cpu(const JoinedRows& in, const void* behaviour_signal, const JoinedResults& out, int threads) {
    with_type(in.logits.dtype,
              [&](auto type) { forward<Accumulator<decltype(type)>>(in, behaviour_signal, out, threads); });
}

void token_objective_gradient_cpu(const JoinedRows& in, const JoinedGradient& gradient, int threads) {
    with_type(in.logits.dtype, [&](auto type) { backward<Accumulator<decltype(type)>>(in, gradient, threads); });
}

}  // namespace gipo
