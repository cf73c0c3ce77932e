// The CPU kernels over all cases: under AddressSanitizer and UndefinedBehaviorSanitizer (test_csrc.py builds it so),
// each twice with different numbers of threads, which must give the same bits, and half precision against float64. With
// any argument only those in float32: a thread sanitizer is slow, and learns nothing from other types.
#include <thread>

#include "cache_cases.h"
#include "cases.h"
#include "layer_cases.h"
#include "sampling_case.h"

using namespace gipo;

namespace {

// Attention against the same in float64, of the cache and the queries as they were rounded.
template <class T>
void check_out(const CacheCase<T>& c, const std::vector<std::vector<float>>& results) {
    const auto &query = results[0], &keys = results[1], &values = results[2], &out = results[3];
    const int64_t heads = c.heads * c.queries;
    int64_t first = 0;
    for (size_t k = 0; k < c.length.size(); first += c.length[k++]) {
        for (int64_t h = 0; h < heads; ++h) {
            std::vector<double> expected(c.width);
            double sum = 0;
            for (int64_t t = 0; t < c.length[k]; ++t) {
                const int64_t page = c.table[k * c.slot_pages + t / kPage];
                const int64_t row = ((page * c.heads + h / c.queries) * kPage + t % kPage) * c.width;
                double score = 0;
                for (int64_t d = 0; d < c.width; ++d) {
                    score += double(query[((first + c.length[k] - 1) * heads + h) * c.width + d]) * keys[row + d];
                }
                const double weight = std::exp(0.3 * score - 30);
                for (int64_t d = 0; d < c.width; ++d) expected[d] += weight * values[row + d];
                sum += weight;
            }
            for (int64_t d = 0; d < c.width; ++d) {
                const double exact = sum > 0 ? expected[d] / sum : 0.0;
                const double apart = std::fabs(out[(k * heads + h) * c.width + d] - exact) / (1 + std::fabs(exact));
                require(apart < (sizeof(T) == 4 ? 3e-6 : 5e-3), "attention differs from float64 by", apart);
            }
        }
    }
}

template <class T>
void check() {
    int cases = 0;
    for_each_case<T>(
        [&](const TokenCase<T>& c) {
            const auto one = c.run(token_statistics_cpu, token_partials_cpu, token_merge_cpu, token_gradient_cpu, 1);
            const auto four = c.run(token_statistics_cpu, token_partials_cpu, token_merge_cpu, token_gradient_cpu, 4);
            const double apart = difference(four, one);
            require(apart == 0, "op A depends on the number of threads", apart);
            ++cases;
        },
        [&](const SequenceCase<T>& c) {
            const auto one = c.run(group_objective_cpu, group_objective_gradient_cpu, shape_and_gae_cpu, 1);
            const auto four = c.run(group_objective_cpu, group_objective_gradient_cpu, shape_and_gae_cpu, 4);
            const double apart = difference(four, one);
            require(apart == 0, "op B or C depends on the number of threads", apart);
            ++cases;
        });
    for_each_joined_case<T>([&](const JoinedCase<T>& c) {
        const auto one = c.run(token_objective_cpu, token_objective_gradient_cpu, 1);
        const double apart = difference(c.run(token_objective_cpu, token_objective_gradient_cpu, 4), one);
        require(apart == 0, "ops A and B joined depend on the number of threads", apart);
        ++cases;
    });
    if constexpr (sizeof(T) == 4) {
        for_each_layer_case([&](const auto& c) {
            const double apart = difference(c.run(4), c.run(1));
            require(apart == 0, "the ops of a layer depend on the number of threads", apart);
            ++cases;
        });
    }
    if constexpr (sizeof(T) < 8) {
        for_each_cache_case<T>([&](const CacheCase<T>& c) {
            const auto one = run_on_cpu(c, 1);
            const double apart = difference(run_on_cpu(c, 4), one);
            require(apart == 0, "the ops over a paged cache depend on the number of threads", apart);
            check_out(c, one);
            ++cases;
        });
    }
    for_each_sampling_case<T>([&](const SamplingCase<T>& c) {
        const double apart = difference(c.run(sample_cpu, 4), c.run(sample_cpu, 1));
        require(apart == 0, "op D depends on the number of threads", apart);
        ++cases;
    });
    std::printf("%d cases\n", cases);
}

}  // namespace

int main(int arguments, char**) {
    check<float>();
    if (arguments == 1) {
        check<BFloat16>();
        check<Float16>();
        check<double>();
    }
    // Enough rows for real threads.
    const TokenCase<float> large(64, 4097, 5, 3, 1);
    const auto one = large.run(token_statistics_cpu, token_partials_cpu, token_merge_cpu, token_gradient_cpu, 1);
    const double apart =
        difference(large.run(token_statistics_cpu, token_partials_cpu, token_merge_cpu, token_gradient_cpu, 4), one);
    require(apart == 0, "op A depends on the number of threads", apart);
    const SequenceCase<float> long_ones(64, 700, 3, 2, 0);
    const auto run = [&](int threads) {
        return long_ones.run(group_objective_cpu, group_objective_gradient_cpu, shape_and_gae_cpu, threads);
    };
    const auto alone = run(1);
    require(difference(run(4), alone) == 0, "op B or C depends on the number of threads", 0);
    // Two callers at a time, of which one has the helpers; then a round with fewer of them.
    std::vector<double> found(2);
    std::thread other([&] { found[0] = difference(run(4), alone); });
    found[1] = difference(run(4), alone);
    other.join();
    require(found[0] == 0 && found[1] == 0, "ops B and C by two callers", found[0] + found[1]);
    require(difference(run(2), alone) == 0, "ops B and C with two threads", 0);
    return 0;
}
