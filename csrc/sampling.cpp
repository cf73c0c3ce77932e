// Build and test: pip install -e . && pytest tests/ops/test_sampling.py
//
// Op D on the CPU, over a range of rows; compiled for every instruction set (cpu.h). One pass fuses temperature,
// softmax, log-prob and the inverse of the cumulative distribution; nothing of the size of the logits is written. A row
// is read for its maximum and again for its sums, the second time from the caches: 4 bytes a float32 logit from memory,
// which is the floor. Top-k and top-p make a list of the few logits that may stay, from a bound that costs no sorting:
// a logit that is among the k largest is no smaller than the k-th largest of the lanes' maxima, and logits whose
// probability is below (1 - top_p) / V hold less than 1 - top_p together.
//
// Order of reduction: 16 interleaved lanes inside blocks of 512 columns (more beyond half a million columns), the lanes
// in order in double, the blocks in order in double; inside the block in which the target lies, and in a list, one
// after the other in double. A row's result depends on nothing but the row; AVX2 and AVX-512 give the same bits.
#include "sampling.h"

#include "cpu.h"
#include "logit_lanes.h"
#include "selection.h"

namespace gipo {
namespace GIPO_ISA {
namespace {

constexpr int64_t kBlocks = 1024;

// Columns of a block: a row has at most kBlocks of them.
GIPO_HD int64_t block_width(int64_t columns) {
    constexpr int64_t kLeast = 512;
    return kLeast * ((columns + kLeast * kBlocks - 1) / (kLeast * kBlocks));
}

// Bit k is set where lane k of a is at least b's.
template <class A>
GIPO_HD uint32_t at_least(const Lanes<A>& a, const Lanes<A>& b) {
    uint32_t bits = 0;
    for (int k = 0; k < kLanes; ++k) bits |= static_cast<uint32_t>(a.lane(k) >= b.lane(k)) << k;
    return bits;
}
#if GIPO_VECTOR_BYTES == 64 && defined(__AVX512F__)
GIPO_HD uint32_t at_least(const Lanes<float>& a, const Lanes<float>& b) {
    return _mm512_cmp_ps_mask(a.part[0], b.part[0], _CMP_GE_OQ);
}
#elif GIPO_VECTOR_BYTES == 32 && defined(__AVX2__)
GIPO_HD uint32_t at_least(const Lanes<float>& a, const Lanes<float>& b) {
    const int low = _mm256_movemask_ps(_mm256_cmp_ps(a.part[0], b.part[0], _CMP_GE_OQ));
    const int high = _mm256_movemask_ps(_mm256_cmp_ps(a.part[1], b.part[1], _CMP_GE_OQ));
    return static_cast<uint32_t>(low) | static_cast<uint32_t>(high) << 8;
}
#endif

template <class A>
struct Weights {  // of logits, relative to the largest one
    A maximum, scale;

    GIPO_HD Lanes<A> of(const Lanes<A>& logits) const {
        return power_of_two(exponent_of(logits, Lanes<A>(maximum), Lanes<A>(scale)));
    }
};

template <class T, class A = Accumulator<T>>
GIPO_HD double sum_of(const T* row, int64_t begin, int64_t end, const Weights<A>& weights) {
    Lanes<A> sums(A(0));
    int64_t v = begin;
    for (; v + kLanes <= end; v += kLanes) sums += weights.of(load_lanes(row + v));
    if (v < end) sums += weights.of(logits_at(row, v, end));
    return in_order(sums);
}

// Maximum of the columns [begin, end), and the sum of their weights; `sums`: those of the blocks, or null.
template <class A>
struct Part {
    A maximum;
    double sum;
};
template <class T, class A = Accumulator<T>>
GIPO_HD Part<A> part_of(const T* row, int64_t begin, int64_t end, A scale, double* sums) {
    const A maximum = maximum_of(row, begin, end);
    const int64_t width = block_width(end - begin);
    const Weights<A> weights{maximum, scale};
    double total = 0;
    for (int64_t v = begin; v < end; v += width) {
        const double sum = sum_of(row, v, v + width < end ? v + width : end, weights);
        if (sums != nullptr) sums[(v - begin) / width] = sum;
        total += sum;
    }
    return {maximum, total};
}

template <class T, class A = Accumulator<T>>
GIPO_HD int64_t first_of(const T* row, int64_t columns, A logit) {
    const Lanes<A> wanted(logit);
    for (int64_t v = 0; v < columns; v += kLanes) {
        const uint32_t bits = at_least(logits_at(row, v, columns), wanted);
        if (bits != 0) return v + __builtin_ctz(bits);
    }
    return -1;
}

// The first of `columns` tokens whose cumulative weight exceeds the target.
template <class T, class A = Accumulator<T>>
GIPO_HD int64_t draw(const T* row, int64_t columns, const Weights<A>& weights, const double* sums, double target) {
    const int64_t width = block_width(columns);
    int64_t block = 0;
    double before = 0;
    while (!(before + sums[block] > target)) before += sums[block++];  // all of them together exceed it
    const int64_t begin = block * width, end = begin + width < columns ? begin + width : columns;
    int64_t token = -1;  // the last that weighs anything, where rounding puts the target behind it
    for (int64_t v = begin; v < end; v += kLanes) {
        const Lanes<A> group = weights.of(logits_at(row, v, end));
        for (int k = 0; k < kLanes; ++k) {
            const double weight = static_cast<double>(group.lane(k));
            before += weight;
            if (weight > 0) token = v + k;
            if (before > target) return token;
        }
    }
    return token;
}

// ---- Top-k and top-p
// -------------------------------------------------------------------------------------------------

template <class A>
struct List {  // of logits that may stay, in the order of the vocabulary
    A *logits, *weights;
    int32_t* ids;
    int64_t count;

    GIPO_HD void append(const Lanes<A>& group, uint32_t bits, int64_t v) {
        for (; bits != 0; bits &= bits - 1) {
            const int k = __builtin_ctz(bits);
            logits[count] = group.lane(k);
            ids[count++] = static_cast<int32_t>(v + k);
        }
    }
    GIPO_HD void cut(Cut<A> cut) {
        int64_t kept = 0;
        for (int64_t k = 0; k < count; ++k) {
            if (!cut.keeps(logits[k])) continue;
            logits[kept] = logits[k];
            weights[kept] = weights[k];
            ids[kept++] = ids[k];
        }
        count = kept;
    }
    GIPO_HD double weigh(const Weights<A>& relative) {
        double total = 0;
        for (int64_t k = 0; k < count; k += kLanes) {
            store_lanes(weights + k, relative.of(logits_at(logits, k, count)));  // there is room behind the list
        }
        for (int64_t k = 0; k < count; ++k) total += static_cast<double>(weights[k]);
        return total;
    }
    GIPO_HD int64_t draw(double uniform) const {
        double total = 0, cumulative = 0;
        for (int64_t k = 0; k < count; ++k) total += static_cast<double>(weights[k]);
        const double target = target_mass(uniform, total);
        for (int64_t k = 0; k < count; ++k) {
            cumulative += static_cast<double>(weights[k]);
            if (cumulative > target) return ids[k];
        }
        return -1;
    }
};
#if GIPO_VECTOR_BYTES == 64 && defined(__AVX512F__)
template <>
GIPO_HD void List<float>::append(const Lanes<float>& group, uint32_t bits, int64_t v) {
    if (bits == 0) return;
    const __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i all = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(v)), places);
    const auto mask = static_cast<__mmask16>(bits);
    _mm512_storeu_ps(logits + count, _mm512_maskz_compress_ps(mask, group.part[0]));
    _mm512_storeu_si512(ids + count, _mm512_maskz_compress_epi32(mask, all));
    count += __builtin_popcount(bits);
}
#endif

// -Inf weighs nothing, and is not listed.
template <class A>
GIPO_HD A lowest_finite() {
    return sizeof(A) == 8 ? A(-0x1.fffffffffffffp1023) : A(-0x1.fffffep127f);
}

// The least logit that may be among the k largest. `room`: numbers for 16 of each 512 columns.
template <class T, class A = Accumulator<T>>
GIPO_HD A bound_of_top_k(const T* row, int64_t columns, int64_t k, A* room) {
    const int64_t width = block_width(columns);
    const Lanes<A> lowest(lowest_finite<A>());
    int64_t count = 0;
    for (int64_t v = 0; v < columns; v += width, count += kLanes) {
        const Lanes<A> maxima = lane_maxima(row, v, v + width < columns ? v + width : columns);
        store_lanes(room + count, select(maxima > lowest, maxima, lowest));
    }
    return k <= count ? cut_at<A>(room, nullptr, count, static_cast<double>(k)).value : lowest_finite<A>();
}

template <class T, class A = Accumulator<T>>
GIPO_HD int64_t draw_filtered(const SampleRows& in, const T* row, const LogSum& whole, double uniform, List<A> list) {
    const int64_t columns = in.candidates;
    A bound = in.has_top_k() ? bound_of_top_k(row, columns, in.top_k, list.weights)
                             : static_cast<A>(bound_of_top_p(in, whole));
    bound = bound < lowest_finite<A>() ? lowest_finite<A>() : bound;
    const Lanes<A> bounds(bound);
    for (int64_t v = 0; v < columns; v += kLanes) {
        const Lanes<A> group = logits_at(row, v, columns);
        list.append(group, at_least(group, bounds), v);
    }
    if (in.has_top_k() && list.count > in.top_k) {
        list.cut({cut_at<A>(list.logits, nullptr, list.count, static_cast<double>(in.top_k)).value, INT64_MAX});
    }
    const double total = list.weigh({static_cast<A>(whole.maximum), binary_scale<A>(in.temperature)});
    if (in.has_top_p()) {
        const double goal = in.top_p * (in.has_top_k() ? total : whole.sum);
        list.cut(cut_at<A>(list.logits, list.weights, list.count, goal));
    }
    return list.draw(uniform);
}

// room: that of a list, sample_room(in) bytes, where the rows are filtered.
template <class T>
void draw_rows(const SampleRows& in, const DrawnRows& out, void* room, int64_t begin, int64_t end) {
    using A = Accumulator<T>;
    const A scale = binary_scale<A>(in.temperature);
    const int64_t places = in.candidates + kLanes;
    A* numbers = static_cast<A*>(room);
    const List<A> list{numbers, numbers + places, reinterpret_cast<int32_t*>(numbers + 2 * places), 0};
    double sums[kBlocks];
    for (int64_t i = begin; i < end; ++i) {
        const T* row = static_cast<const T*>(in.logits) + i * in.stride;
        const Part<A> whole = part_of(row, 0, in.candidates, scale, sums);
        const Part<A> rest = part_of(row, in.candidates, in.columns, scale, nullptr);
        const LogSum candidates{static_cast<double>(whole.maximum), whole.sum};
        const LogSum all = candidates.plus({static_cast<double>(rest.maximum), rest.sum}, in.temperature);
        if (!drawable(candidates, all)) {
            put_broken(out, i);
            continue;
        }
        int64_t token;
        if (in.uniforms == nullptr) {
            token = first_of(row, in.candidates, whole.maximum);
        } else if (in.filtered()) {
            token = draw_filtered(in, row, candidates, in.uniforms[i], list);
        } else {
            const double target = target_mass(in.uniforms[i], whole.sum);
            token = draw(row, in.candidates, Weights<A>{whole.maximum, scale}, sums, target);
        }
        out.tokens[i] = token;
        out.logp[i] = all.log_prob(static_cast<double>(widen(row[token])), in.temperature);
    }
}

}  // namespace

extern const SamplingRowKernels sampling_rows = {
    {draw_rows<float>, draw_rows<BFloat16>, draw_rows<Float16>, draw_rows<double>},
};

}  // namespace GIPO_ISA
}  // namespace gipo
