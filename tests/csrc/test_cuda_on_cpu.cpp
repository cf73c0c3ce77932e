// The CUDA kernels, run by fibers (cuda_on_cpu/cuda_runtime.h), against the CPU kernels: the cases that all back ends
// share, then what only the CUDA kernels can get wrong, whole and incomplete groups of 16-byte packs between single
// elements, written in place.
#include <cstring>
#include <limits>

#include "cache_cases.h"
#include "cases.h"
#include "sampling_case.h"

using namespace gipo;

namespace {

void* const kStream = nullptr;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Worst {
    double relative = 0, tolerance;
    int cases = 0;

    template <class A>
    void add(const char* what, const std::vector<std::vector<A>>& cuda, const std::vector<std::vector<A>>& cpu) {
        relative = std::fmax(relative, difference(cuda, cpu));
        require(relative <= tolerance, what, relative);
        ++cases;
    }
};

template <class T>
void compare(const TokenCase<T>& c, Worst& worst) {
    worst.add("op A on CUDA and on the CPU differ by",
              c.run(token_statistics_cuda, token_partials_cuda, token_merge_cuda, token_gradient_cuda, kStream),
              c.run(token_statistics_cpu, token_partials_cpu, token_merge_cpu, token_gradient_cpu, 1));
}

template <class T>
void compare(const SequenceCase<T>& c, Worst& worst) {
    worst.add("op B or C on CUDA and on the CPU differ by",
              c.run(group_objective_cuda, group_objective_gradient_cuda, shape_and_gae_cuda, kStream),
              c.run(group_objective_cpu, group_objective_gradient_cpu, shape_and_gae_cpu, 1));
}

template <class T>
void compare(const JoinedCase<T>& c, Worst& worst) {
    worst.add("ops A and B joined on CUDA and on the CPU differ by",
              c.run(token_objective_cuda, token_objective_gradient_cuda, kStream),
              c.run(token_objective_cpu, token_objective_gradient_cpu, 1));
}

template <class T>
void compare(const CacheCase<T>& c, Worst& worst) {
    const int64_t heads = c.heads * c.queries, chunks = chunks_of(c.slot_pages * kPage);
    worst.add("the ops over a paged cache on CUDA and on the CPU differ by",
              c.run([](const NewTokens& in, const PagedCache& cache) { rotate_and_append_cuda(in, cache, kStream); },
                    [&](const QueryRows& in, const PagedCache& cache) {
                        std::vector<float> parts(in.rows * heads * chunks * part_size(cache), NAN);
                        paged_attention_cuda(in, cache, parts.data(), kStream);
                    }),
              run_on_cpu(c, 1));
}

// What does not exist is written nowhere, and is seen as NaN.
void check_what_does_not_exist() {
    CacheCase<float> c({20, 20, 20, 20, 5}, 1, 1, 8, 0);
    c.table[2 * c.slot_pages + 1] = static_cast<int32_t>(c.pages);
    const auto results =
        c.run([&](const NewTokens& in, const PagedCache& cache) { rotate_and_append_cuda(in, cache, kStream); },
              [&](const QueryRows& in, const PagedCache& cache) {
                  std::vector<int64_t> length = c.length, slot = c.slot;
                  slot[0] = 99;
                  length[1] = cache.slot_pages * kPage + 1;
                  length[3] = -1;
                  QueryRows wrong = in;
                  wrong.length = length.data();
                  wrong.slot = slot.data();
                  std::vector<float> parts(in.rows * part_size(cache), NAN);
                  paged_attention_cuda(wrong, cache, parts.data(), kStream);
              });
    for (int64_t row = 0; row < 5; ++row) {
        for (int64_t d = 0; d < 8; ++d) {
            require(std::isnan(results[3][row * 8 + d]) == (row < 4), "NaN or not in row", row);
        }
    }
}

template <class T>
void compare(const SamplingCase<T>& c, Worst& worst) {
    worst.add("op D on CUDA and on the CPU differ by", c.run(sample_cuda, kStream), c.run(sample_cpu, 1));
}

// Gradient over the logits themselves, as rows of `columns + padding` elements and `extra` more that must stay as they
// are. The statistics need not be true for that.
template <class T, class Gradient, class Last>
std::vector<T> in_place(std::vector<T> logits, int64_t rows, int64_t columns, int64_t padding, int64_t extra,
                        int64_t offset, Gradient gradient, Last last) {
    const int64_t width = columns + padding, first = 3;
    std::vector<int64_t> targets;
    std::vector<float> entropy(rows), statistics(2 * rows), upstream(2 * rows);
    for (int64_t i = 0; i < rows; ++i) {
        targets.push_back(i == 2 ? kIgnoredTarget : first + (i == 1 ? columns - 1 : i * columns / rows));
        entropy[i] = 3.0f;
        statistics[i] = 9.0f;
        statistics[rows + i] = 1.5f;
        upstream[i] = 0.5f + i;
        upstream[rows + i] = i % 2 ? 0.0f : -0.25f;
    }
    const LogitRows in{logits.data() + offset, kCode<T>, rows, columns, width + extra, targets.data(), first, 0.7};
    gradient(in,
             LogitGradient{width, first + columns, entropy.data(), statistics.data(), upstream.data(),
                           upstream.data() + rows, logits.data() + offset, width + extra},
             last);
    return logits;
}

template <class T>
void compare_in_place(int64_t columns, int64_t padding, int64_t extra, int64_t offset, Worst& worst) {
    const int64_t rows = 4;
    const auto logits = normal<T>(offset + rows * (columns + padding + extra) + 5, 3.0);
    const auto cuda = in_place(logits, rows, columns, padding, extra, offset, token_gradient_cuda, kStream);
    const auto cpu = in_place(logits, rows, columns, padding, extra, offset, token_gradient_cpu, 1);
    std::vector<float> x, y;
    for (size_t k = 0; k < logits.size(); ++k) {
        const int64_t place = static_cast<int64_t>(k) - offset, column = place % (columns + padding + extra);
        const bool inside = place >= 0 && place < rows * (columns + padding + extra) && column < columns + padding;
        require(inside || std::memcmp(&cuda[k], &logits[k], sizeof(T)) == 0, "written outside, element", k);
        x.push_back(widen(cuda[k]));
        y.push_back(widen(cpu[k]));
    }
    worst.add<float>("the gradient in place on CUDA and on the CPU differ by", {x}, {y});
}

// Rows whose statistics are not finite, or finite only if no step on the way overflows. Whatever one thread holds is
// different from what the others hold.
template <class T>
void compare_special_rows(Worst& worst) {
    const int64_t columns = 1200, extra = 4;
    TokenCase<T> c(10, columns, 0, extra, 0);
    const double largest = sizeof(T) == 4 || std::is_same<T, BFloat16>::value ? 3e38 : 6e4;
    const auto fill = [&](int64_t row, int64_t begin, int64_t end, double value) {
        for (int64_t shard = 0; shard < 2; ++shard) {
            T* logits = c.logits.data() + (shard * c.rows + row) * (columns + extra);
            for (int64_t v = begin; v < end; ++v) logits[v] = Narrow<T>::from(static_cast<float>(value));
        }
    };
    fill(0, 0, columns, -kInfinity);
    fill(1, 0, columns - 1, -kInfinity);
    fill(2, 300, 301, NAN);
    fill(3, 7, 8, kInfinity);
    fill(5, 0, 600, largest);
    fill(6, 0, 600, -largest);
    fill(7, 0, columns, -largest);
    fill(8, 0, 600, 1e4);
    compare(c, worst);
}

template <class T>
void check(double tolerance) {
    Worst worst{0, tolerance};
    for_each_case<T>([&](const TokenCase<T>& c) { compare(c, worst); },
                     [&](const SequenceCase<T>& c) { compare(c, worst); });
    for_each_joined_case<T>([&](const JoinedCase<T>& c) { compare(c, worst); });
    for_each_cache_case<T>([&](const CacheCase<T>& c) { compare(c, worst); });
    for_each_sampling_case<T>([&](const SamplingCase<T>& c) { compare(c, worst); });
    const int64_t pack = 16 / sizeof(T);
    compare(SamplingCase<T>(13, 20000, 19000, 5, 2), worst);      // segments of candidates, and one of other ids
    compare(TokenCase<T>(2, 1324 * pack + 5, 100, 3, 1), worst);  // one whole group, 300 packs, 5 elements
    compare_in_place<T>(1024 * pack, 0, 0, 0, worst);             // one whole group for each thread, nothing else
    compare_in_place<T>(2047 * pack - 1, 3, 2, 3, worst);
    for (int64_t offset = 0; offset < pack; ++offset) compare_in_place<T>(5 * pack + offset, offset, 1, offset, worst);
    compare_special_rows<T>(worst);
    compare(SequenceCase<T>(3, 257 * pack + 1, 9, 2, 0), worst);  // two packs a thread, three tiles of groups
    compare(SequenceCase<T>(2, 256 * pack, 4, 0, 1), worst);
    std::printf("%d cases, largest relative difference %g\n", worst.cases, worst.relative);
}

}  // namespace

int main() {
    check<float>(1e-5);
    check<BFloat16>(8e-3);  // one unit in the last place of a gradient
    check<Float16>(1e-3);
    check_what_does_not_exist();
    return 0;
}
