// Op D, sampling: what the CPU and the CUDA kernels take. Sizes and strides count elements.
#pragma once

#include "formulas.h"

namespace gipo {

// Rows of logits of a whole vocabulary, and how a token is drawn from each.
struct SampleRows {
    const void* logits;  // [rows, columns] in, of `dtype`
    DType dtype;
    int64_t rows, columns, stride;
    int64_t candidates;      // ids below it can be drawn; the others have their probability only
    const double* uniforms;  // [rows] in, each in [0, 1); null: the largest logit is taken
    double temperature;
    int64_t top_k;  // 0: all
    double top_p;   // 1: all

    GIPO_HD bool has_top_k() const { return top_k > 0 && top_k < candidates; }
    GIPO_HD bool has_top_p() const { return top_p < 1.0; }
    GIPO_HD bool filtered() const { return uniforms != nullptr && (has_top_k() || has_top_p()); }
};

struct DrawnRows {
    int64_t* tokens;  // [rows] out; -1 for a row that cannot be drawn from
    double* logp;     // [rows] out, of the whole vocabulary at the temperature; NaN for such a row
};

// Bytes that a thread of the CPU needs beside: two numbers and an id for each candidate, and 16 of each more.
inline int64_t sample_room(const SampleRows& in) {
    const int64_t number = in.dtype == DType::kFloat64 ? 8 : 4;
    return in.filtered() ? (in.candidates + 16) * (2 * number + 4) : 0;
}

void sample_cpu(const SampleRows& in, const DrawnRows& out, int threads);

// log2(e) / temperature, such that neither 0 nor -Inf times it is NaN.
template <class A>
GIPO_HD A binary_scale(double temperature) {
    const double scale = kLog2E / temperature;
    return static_cast<A>(scale > 1e38 ? 1e38 : scale < 1e-30 ? 1e-30 : scale);
}

// The mass below which a uniform number points: less than the total, although their product may round up to it.
GIPO_HD double target_mass(double uniform, double total) {
    const double target = uniform * total;
    return target < total ? target : total * (1.0 - 0x1p-53);
}

// A sum of e^((z - maximum) / temperature) over some logits z, in double: what a row's normaliser is made of.
struct LogSum {
    double maximum, sum;

    GIPO_HD LogSum plus(const LogSum& other, double temperature) const {
        const double highest = maximum > other.maximum ? maximum : other.maximum;
        return {highest, sum * exp((maximum - highest) / temperature) +
                             other.sum * exp((other.maximum - highest) / temperature)};
    }
    GIPO_HD double log_prob(double logit, double temperature) const {
        return (logit - maximum) / temperature - log(sum);
    }
};

// A token can be drawn from the row: `candidates` has a finite logit, and `all` neither a NaN nor +Inf.
GIPO_HD bool drawable(const LogSum& candidates, const LogSum& all) {
    return fabs(candidates.maximum) < HUGE_VAL && fabs(all.maximum) < HUGE_VAL && all.sum < HUGE_VAL;
}

GIPO_HD void put_broken(const DrawnRows& out, int64_t i) {
    out.tokens[i] = -1;
    out.logp[i] = NAN;
}

}  // namespace gipo
