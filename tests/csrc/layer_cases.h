// Exactly sized inputs and outputs of the ops of a layer, as cases.h has them of the other ops.
#pragma once

#include "cases.h"
#include "causal_attention.h"
#include "layer_rows.h"

namespace gipo {

using Buffers = std::vector<std::vector<float>>;

// Attention forward and backward, with rows of sines and cosines in one table.
struct SequencesCase {
    int64_t length, batch, heads, queries, width;
    std::vector<float> qkv, upstream, table;

    SequencesCase(int64_t length, int64_t batch, int64_t heads, int64_t queries, int64_t width)
        : length(length), batch(batch), heads(heads), queries(queries), width(width) {
        qkv = normal<float>(length * batch * heads * (queries + 2) * width, 1.0);
        upstream = normal<float>(length * batch * heads * queries * width, 1.0);
        table = normal<float>(length * width, 1.0);
    }

    Buffers run(int threads) const {
        std::vector<float> seen(upstream.size(), 9), statistics(2 * batch * heads * queries * length, 9);
        std::vector<float> gradient(qkv.size(), 9);
        // Rows of one sequence after those of another, in every second case.
        const bool first = length % 2 == 0;
        const Sequences in{qkv.data(),
                           length,
                           batch,
                           heads,
                           queries,
                           width,
                           first ? 1 : batch,
                           first ? length : 1,
                           table.data(),
                           table.data() + width / 2,
                           width,
                           0.3,
                           statistics.data()};
        causal_attention_cpu(in, seen.data(), threads);
        causal_attention_gradient_cpu(in, {upstream.data(), gradient.data()}, threads);
        return {seen, statistics, gradient};
    }
};

// RMSNorm with and without a sum before it, and the gated SiLU, forward and backward.
struct RowsCase {
    int64_t rows, columns;
    std::vector<float> x, other, weight, upstream, both;

    RowsCase(int64_t rows, int64_t columns) : rows(rows), columns(columns) {
        x = normal<float>(rows * columns, 1.0);
        other = normal<float>(rows * columns, 1.0);
        weight = normal<float>(columns, 1.0);
        upstream = normal<float>(rows * columns, 1.0);
        both = normal<float>(2 * rows * columns, 3.0);
    }

    Buffers run(int threads) const {
        Buffers found;
        for (const bool summed : {true, false}) {
            std::vector<float> sum(rows * columns, 9), normed(rows * columns, 9), inverse(rows, 9);
            const NormRows in{x.data(), summed ? other.data() : nullptr, rows, columns, weight.data(), 1e-5};
            norm_rows_cpu(in, {summed ? sum.data() : nullptr, normed.data(), inverse.data()}, threads);
            std::vector<float> of_x(rows * columns, 9), of_weight(columns, 9);
            std::vector<float> shares((rows + kNormChunk - 1) / kNormChunk * columns, 9);
            const NormRows given{summed ? sum.data() : x.data(), nullptr, rows, columns, weight.data(), 0};
            norm_rows_gradient_cpu(given,
                                   {upstream.data(), summed ? other.data() : nullptr, inverse.data(), of_x.data(),
                                    shares.data(), of_weight.data()},
                                   threads);
            found.insert(found.end(), {sum, normed, inverse, of_x, of_weight});
        }
        std::vector<float> out(rows * columns, 9), of_both(both.size(), 9);
        gated_silu_cpu({both.data(), rows, columns}, out.data(), threads);
        gated_silu_gradient_cpu({both.data(), rows, columns}, upstream.data(), of_both.data(), threads);
        found.insert(found.end(), {out, of_both});
        return found;
    }
};

template <class Visit>
void for_each_layer_case(const Visit& visit) {
    visit(SequencesCase(1, 1, 1, 1, 2));
    visit(SequencesCase(17, 9, 2, 3, 16));
    visit(SequencesCase(33, 2, 3, 1, 40));
    visit(SequencesCase(6, 2, 1, 2, 12));
    visit(RowsCase(1, 1));
    visit(RowsCase(5, 24));
    visit(RowsCase(2 * kNormChunk + 3, 700));
}

}  // namespace gipo
