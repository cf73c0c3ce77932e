// The CUDA kernels, run by fibers (cuda_on_cpu/cuda_runtime.h), against the CPU kernels.
#include "cases.h"

using namespace gipo;

namespace {

template <class T>
void check(double tolerance) {
    double worst = 0;
    int cases = 0;
    void* const stream = nullptr;
    for_each_case<T>(
        [&](const TokenCase<T>& c) {
            const auto cpu = c.run(token_partials_cpu, token_merge_cpu, token_gradient_cpu, 1);
            const auto cuda = c.run(token_partials_cuda, token_merge_cuda, token_gradient_cuda, stream);
            worst = std::fmax(worst, difference(cuda, cpu));
            require(worst <= tolerance, "op A on CUDA and on the CPU differ by", worst);
            ++cases;
        },
        [&](const SequenceCase<T>& c) {
            const auto cpu = c.run(group_objective_cpu, group_objective_gradient_cpu, shape_and_gae_cpu, 1);
            const auto cuda = c.run(group_objective_cuda, group_objective_gradient_cuda, shape_and_gae_cuda, stream);
            worst = std::fmax(worst, difference(cuda, cpu));
            require(worst <= tolerance, "op B or C on CUDA and on the CPU differ by", worst);
            ++cases;
        });
    std::printf("%d cases, largest relative difference %g\n", cases, worst);
}

}  // namespace

int main() {
    check<float>(1e-5);
    check<BFloat16>(8e-3);  // one unit in the last place of a gradient
    check<Float16>(1e-3);
    return 0;
}
