// The CPU kernels over all cases: under AddressSanitizer and UndefinedBehaviorSanitizer (test_csrc.py builds it so),
// each twice with different numbers of threads, which must give the same bits, and half precision against float64.
#include "cases.h"

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
    return 0;
}
