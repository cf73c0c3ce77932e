// Op D, sampling: what the CPU and the CUDA kernels take. Sizes and strides count elements.
#pragma once

#include "formulas.h"

namespace gipo {

struct SegmentPart {  // of a row: its largest logit m, and sum e^((z - m) / temperature)
    float maximum, sum;
};

// Rows of logits of a whole vocabulary, and how a token is drawn from each.
struct SampleRows {
    const void* logits;  // [rows, columns] in, of `dtype`
    DType dtype;
    int64_t rows, columns, stride;
    int64_t candidates;      // ids below it can be drawn; the others have their probability only
    const double* uniforms;  // [rows] in, each in [0, 1); null: the largest logit is taken
    double temperature;
    int64_t top_k;          // 0: all
    double top_p;           // 1: all
    SegmentPart* segments;  // [rows, Segments::count()] room that the CUDA kernels need; not used on the CPU

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
void sample_cuda(const SampleRows& in, const DrawnRows& out, CudaStream stream);

constexpr int kSegments = 128;

// A row in segments of equal width, first those of the candidates, then those of the other ids.
struct Segments {
    int64_t width, candidates, columns, own;  // own: segments of the candidates

    GIPO_HD Segments(int64_t columns, int64_t candidates) : candidates(candidates), columns(columns) {
        constexpr int64_t kLeast = 8192, kMost = kLeast * (kSegments - 2);
        width = kLeast * ((columns + kMost - 1) / kMost);
        own = (candidates + width - 1) / width;
    }
    GIPO_HD int64_t count() const { return own + (columns - candidates + width - 1) / width; }
    GIPO_HD int64_t begin(int64_t s) const { return s < own ? s * width : candidates + (s - own) * width; }
    GIPO_HD int64_t end(int64_t s) const {
        const int64_t end = begin(s) + width, last = s < own ? candidates : columns;
        return end < last ? end : last;
    }
};

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

// The least logit that may be in the smallest set of probability top_p, with some distance for rounding: logits whose
// probability is below (1 - top_p) / candidates hold less than 1 - top_p together.
GIPO_HD double bound_of_top_p(const SampleRows& in, const LogSum& candidates) {
    const double share = (1.0 - in.top_p) * candidates.sum / static_cast<double>(in.candidates);
    const double bound = candidates.maximum + in.temperature * (log(share) - 1e-3);
    return bound - 1e-6 * fabs(bound);
}

GIPO_HD void put_broken(const DrawnRows& out, int64_t i) {
    out.tokens[i] = -1;
    out.logp[i] = NAN;
}

}  // namespace gipo
