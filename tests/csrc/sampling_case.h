// Exactly sized inputs and outputs of op D, as cases.h has them of the other ops.
#pragma once

#include "cases.h"
#include "sampling.h"

namespace gipo {

// Op D: rows of random and of special logits, in every way to choose a token.
template <class T>
struct SamplingCase {
    int64_t rows, columns, candidates, extra, offset;
    std::vector<T> logits;
    std::vector<double> uniforms;

    SamplingCase(int64_t rows, int64_t columns, int64_t candidates, int64_t extra, int64_t offset)
        : rows(rows), columns(columns), candidates(candidates), extra(extra), offset(offset) {
        logits = normal<T>(offset + rows * (columns + extra), 3.0);
        std::uniform_real_distribution<double> draw(0.0, 1.0);
        for (int64_t i = 0; i < rows; ++i)
            uniforms.push_back(i == 0 ? 0.0 : i == 1 ? 1.0 - 0x1p-53 : draw(random_bits));
        const auto fill = [&](int64_t row, int64_t begin, int64_t step, double value) {
            for (int64_t v = begin; row < rows && v < columns; v += step) {
                logits[offset + row * (columns + extra) + v] = Narrow<T>::from(static_cast<Accumulator<T>>(value));
            }
        };
        fill(0, 0, columns, 6.0);  // the first and the last id, where the uniform numbers point
        fill(1, candidates - 1, columns, 6.0);
        fill(2, 0, 1, 2.5);
        fill(3, columns / 2, columns, NAN);
        fill(4, columns - 1, 1, HUGE_VAL);
        fill(5, 0, 3, -HUGE_VAL);
        fill(6, 0, 1, -HUGE_VAL);
        fill(7, 0, 1, -HUGE_VAL);
        fill(7, candidates / 3, columns, -7.0);
        fill(8, 0, 2, 1e4);
        fill(9, 0, 1, 0.0);
        fill(9, 0, 2, -0.0);
        fill(10, 0, 5, 1.0);
        fill(10, 1, 5, 1.5);
        fill(11, candidates / 2, columns, -3e4);
    }

    // Tokens and log-probs, one way to choose after the other; what the CUDA kernels need beside is `segments`.
    template <class Sample, class Last>
    std::vector<std::vector<double>> run(Sample sample, Last last) const {
        std::vector<std::vector<double>> found;
        std::vector<SegmentPart> segments(rows * Segments(columns, candidates).count());
        for (int way = 0; way < 9; ++way) {
            const int64_t top_k[] = {0, 0, 0, 1, 20, 1100, 0, 0, 30}, k = top_k[way];
            const double top_p[] = {1, 1, 1, 1, 1, 1, 0.9, 1e-9, 0.5}, p = top_p[way];
            std::vector<int64_t> tokens(rows, 99);
            std::vector<double> logp(rows, 99.0);
            const SampleRows in{logits.data() + offset,
                                kCode<T>,
                                rows,
                                columns,
                                columns + extra,
                                candidates,
                                way == 0 ? nullptr : uniforms.data(),
                                way == 2 ? 0.3 : 1.1,
                                k,
                                p,
                                segments.data()};
            sample(in, DrawnRows{tokens.data(), logp.data()}, last);
            found.emplace_back(tokens.begin(), tokens.end());
            found.push_back(logp);
        }
        return found;
    }
};

template <class T, class Visit>
void for_each_sampling_case(Visit&& visit) {
    int k = 0;
    for (const int64_t columns : {1, 7, 64, 255, 1025, 2051}) {
        visit(SamplingCase<T>(14, columns, columns - columns / 5, k % 4, k % 3));
        ++k;
    }
    visit(SamplingCase<T>(0, 5, 5, 0, 0));
}

}  // namespace gipo
