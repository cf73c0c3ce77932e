// The CPU kernels over all cases: under AddressSanitizer and UndefinedBehaviorSanitizer (test_csrc.py builds it so),
// each twice with different numbers of threads, which must give the same bits, and half precision against float64.
#include <thread>

#include "cases.h"
#include "sampling_case.h"

using namespace gipo;

namespace {

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
    for_each_sampling_case<T>([&](const SamplingCase<T>& c) {
        const double apart = difference(c.run(sample_cpu, 4), c.run(sample_cpu, 1));
        require(apart == 0, "op D depends on the number of threads", apart);
        ++cases;
    });
    std::printf("%d cases\n", cases);
}

}  // namespace

int main() {
    check<float>();
    check<BFloat16>();
    check<Float16>();
    check<double>();
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
