// The CPU side of ops A to D: instruction set, element type and threads are chosen here; the rows are worked on in
// token_statistics.cpp, group_objective.cpp, shape_and_gae.cpp and sampling.cpp. The same for the paged cache is in
// paged_cache.cpp.
#include "cpu.h"

#include <cstdlib>
#include <vector>

#include "dtypes.h"
#include "parallel.h"

namespace gipo {
namespace {

constexpr int kWorkOfAToken = 8;  // a token of ops B and C costs about that many logits

struct Candidate {
    InstructionSet set;
    bool supported;
};

// From the best to the plainest.
std::vector<Candidate> candidates() {
    std::vector<Candidate> all;
#if defined(GIPO_WITH_X86_ISAS)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    all.push_back({{"avx512", &avx512::token_rows, &avx512::objective_rows, &avx512::shaping_rows, &avx512::append,
                    &avx512::attention, &avx512::sampling_rows, &avx512::sequences, &avx512::layer_rows},
                   avx512});
    all.push_back({{"avx2", &avx2::token_rows, &avx2::objective_rows, &avx2::shaping_rows, &avx2::append,
                    &avx2::attention, &avx2::sampling_rows, &avx2::sequences, &avx2::layer_rows},
                   avx2});
#endif
    all.push_back({{"plain", &plain::token_rows, &plain::objective_rows, &plain::shaping_rows, &plain::append,
                    &plain::attention, &plain::sampling_rows, &plain::sequences, &plain::layer_rows},
                   true});
    return all;
}

InstructionSet choose() {
    const char* wanted = std::getenv("GIPO_MC_CPU");
    std::string known;
    for (const Candidate& candidate : candidates()) {
        if (!candidate.supported) continue;
        if (wanted == nullptr || *wanted == '\0' || std::string(wanted) == candidate.set.name) return candidate.set;
        known += known.empty() ? "" : ", ";
        known += candidate.set.name;
    }
    throw std::invalid_argument("GIPO_MC_CPU=" + std::string(wanted) + ": this build on this machine has " + known +
                                "; leave it unset for the best.");
}

template <class A>
void merge_rows(const PartialRows& in, const TokenResults& out, int64_t begin, int64_t end) {
    const A inverse_temperature = static_cast<A>(1.0 / in.temperature);
    const A* partials = static_cast<const A*>(in.partials);
    for (int64_t i = begin; i < end; ++i) {
        SoftmaxPart<A> whole = empty_part<A>();
        A target = minus_infinity<A>();
        for (int64_t rank = 0; rank < in.ranks; ++rank) {
            const A* part = partials + rank * kPartialFields * in.rows + i;
            whole = merge<A>(
                whole, {part[kPartialMaximum * in.rows], part[kPartialSum * in.rows], part[kPartialWeighted * in.rows]},
                inverse_temperature);
            const A rank_target = part[kPartialTarget * in.rows];
            target = rank_target > target ? rank_target : target;
        }
        put_results(out, in.rows, i, whole, target, in.targets[i] == kIgnoredTarget, inverse_temperature);
    }
}

template <class A>
void group_sums(const ObjectiveRows& in, const A* sequences, A* sums) {
    const A* probs = static_cast<const A*>(in.probs);
    const A* kl_weight = static_cast<const A*>(in.kl_weight);
    std::vector<double> totals(kGroupFields * in.groups + 1, 0.0);
    for (int64_t i = 0; i < in.batch; ++i) {
        const double signal = sequences[kSignal * in.batch + i], kl = sequences[kKl * in.batch + i];
        for (int64_t g = 0; g < in.groups; ++g) {
            const double p = probs[i * in.groups + g];
            totals[kMass * in.groups + g] += p;
            totals[kWeighted * in.groups + g] += p * signal;
        }
        totals[kGroupFields * in.groups] += static_cast<double>(kl_weight[i]) * kl;
    }
    for (size_t k = 0; k < totals.size(); ++k) sums[k] = static_cast<A>(totals[k]);
}

}  // namespace

const InstructionSet& instruction_set() {
    static const InstructionSet chosen = choose();
    return chosen;
}

void token_partials_cpu(const LogitRows& in, void* partials, int threads) {
    const auto run = kernel_of(instruction_set().token->partials, in.dtype);
    parallel_rows(in.rows, in.columns, threads, [&](int64_t begin, int64_t end) { run(in, partials, begin, end); });
}

void token_statistics_cpu(const LogitRows& in, const TokenResults& out, int threads) {
    const auto run = kernel_of(instruction_set().token->results, in.dtype);
    parallel_rows(in.rows, in.columns, threads, [&](int64_t begin, int64_t end) { run(in, out, begin, end); });
}

void token_merge_cpu(const PartialRows& in, const TokenResults& out, int threads) {
    with_type(in.dtype, [&](auto type) {
        using A = Accumulator<decltype(type)>;
        parallel_rows(in.rows, 16 * in.ranks, threads,
                      [&](int64_t begin, int64_t end) { merge_rows<A>(in, out, begin, end); });
    });
}

void token_gradient_cpu(const LogitRows& in, const LogitGradient& gradient, int threads) {
    const auto run = kernel_of(instruction_set().token->gradient, in.dtype);
    parallel_rows(in.rows, gradient.width, threads, [&](int64_t begin, int64_t end) { run(in, gradient, begin, end); });
}

void group_objective_cpu(const ObjectiveRows& in, const void* behaviour_signal, void* sequences, void* sums,
                         int threads) {
    const auto run = kernel_of(instruction_set().objective->forward, in.dtype);
    parallel_rows(in.batch, kWorkOfAToken * in.time, threads,
                  [&](int64_t begin, int64_t end) { run(in, behaviour_signal, sequences, begin, end); });
    with_type(in.dtype, [&](auto type) {
        using A = Accumulator<decltype(type)>;
        group_sums<A>(in, static_cast<const A*>(sequences), static_cast<A*>(sums));
    });
}

void group_objective_gradient_cpu(const ObjectiveRows& in, const ObjectiveGradient& gradient, int threads) {
    const auto run = kernel_of(instruction_set().objective->backward, in.dtype);
    parallel_rows(in.batch, kWorkOfAToken * in.time, threads,
                  [&](int64_t begin, int64_t end) { run(in, gradient, begin, end); });
}

void shape_and_gae_cpu(const RewardRows& in, const ShapedRows& out, int threads) {
    const auto run = kernel_of(instruction_set().shaping->shape, in.dtype);
    parallel_rows(in.batch, kWorkOfAToken * in.time, threads,
                  [&](int64_t begin, int64_t end) { run(in, out, begin, end); });
    with_type(in.dtype, [&](auto type) {
        const auto* row_sums = static_cast<const Accumulator<decltype(type)>*>(out.row_sums);
        for (int field = 0; field < kSumFields; ++field) {
            double total = 0;
            for (int64_t i = 0; i < in.batch; ++i) total += static_cast<double>(row_sums[field * in.batch + i]);
            out.totals[field] = total;
        }
    });
}

void sample_cpu(const SampleRows& in, const DrawnRows& out, int threads) {
    const auto run = kernel_of(instruction_set().sampling->draw, in.dtype);
    const auto bytes = static_cast<size_t>(sample_room(in));
    parallel_rows(in.rows, in.columns, threads, [&](int64_t begin, int64_t end) {
        thread_local std::vector<char> room;  // kept, as the next call needs as much
        if (room.size() < bytes) room.resize(bytes);
        run(in, out, room.data(), begin, end);
    });
}

}  // namespace gipo
