// Test: pytest tests/ops/cuda with a GPU, pytest tests/csrc/test_csrc.py -k fibers on any CPU
//
// Op D on CUDA, two launches and no host between them. The first fuses temperature, maximum and sum of exponentials of
// each segment of a row: one block a segment, one read of the logits (2 bytes in bf16), which is the floor; a row of
// 128256 is in sixteen segments, so that few rows fill the device. In the second one block a row merges its segments,
// finds the one in which the uniform number lies, reads that again, and writes token and log-prob: 16 bytes a row. With
// top-k or top-p the second launch reads the row three to seven times more, from the second-level cache
// (selection.cuh).
//
// Order of reduction: a segment as op A's rows (token_rows.cuh); segments in order in double; from there on masses are
// integers, whose sums have no order. A row's result depends on nothing but the row, and two runs give the same bits.
#include "sampling.h"

#include "selection.cuh"

namespace gipo {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks) parts_kernel(SampleRows in, float inverse_temperature) {
    __shared__ Part shared[kWarps];
    const Segments segments(in.columns, in.candidates);
    const int64_t count = segments.count();
    for (int64_t block = blockIdx.x; block < in.rows * count; block += gridDim.x) {
        const int64_t i = block / count, s = block % count;
        const T* row = static_cast<const T*>(in.logits) + i * in.stride;
        const int64_t begin = segments.begin(s), end = segments.end(s);
        const Part part = row_part(row + begin, end - begin, inverse_temperature, shared);
        if (threadIdx.x == 0) in.segments[block] = {part.maximum, part.sum};
    }
}

// A row on its way to a token; what all threads of the block know.
struct RowState {
    Selection selection;
    float maxima[kSegments];  // of the segments, then:
    double sums[kSegments];   // in terms of the maximum of the candidates, or of the others
    Mass masses[kSegments];   // of the candidates' segments
    LogSum candidates, all;
    float bound;
    Place segment;
};

// Weights of logits relative to the largest candidate, as masses.
struct Masses {
    float maximum, scale;

    __device__ __forceinline__ Mass operator()(float logit) const {
        return static_cast<Mass>(power_of_two(exponent_of(logit, maximum, scale)) * kUnit);
    }
};

// From the parts of the segments to the sums of the candidates and of all ids.
__device__ __forceinline__ void merge_segments(const SampleRows& in, const Segments& segments, int64_t i,
                                               RowState& state) {
    const int count = static_cast<int>(segments.count()), own = static_cast<int>(segments.own);
    const int s = static_cast<int>(threadIdx.x);
    const SegmentPart part = s < count ? in.segments[i * count + s] : SegmentPart{minus_infinity<float>(), 0.0f};
    if (s < count) state.maxima[s] = part.maximum;
    __syncthreads();
    float highest = minus_infinity<float>();
    for (int k = s < own ? 0 : own; k < (s < own ? own : count); ++k) highest = fmaxf(highest, state.maxima[k]);
    if (s < count) {
        const bool empty = is_minus_infinity(part.maximum);
        const double shift = (static_cast<double>(part.maximum) - static_cast<double>(highest)) / in.temperature;
        state.sums[s] = empty && !(part.sum != part.sum) ? 0.0 : static_cast<double>(part.sum) * exp(shift);
    }
    if (s == 0) state.candidates.maximum = static_cast<double>(highest);
    if (s == own) state.all.maximum = static_cast<double>(highest);
    __syncthreads();
    if (s == 0) {
        LogSum others{state.all.maximum, 0};
        state.candidates.sum = 0;
        for (int k = 0; k < own; ++k) state.candidates.sum += state.sums[k];
        for (int k = own; k < count; ++k) others.sum += state.sums[k];
        state.all = state.candidates.plus(others, in.temperature);
    }
    __syncthreads();
}

// The token in which `target` of the masses of the segments lies; known to thread 0. mass(logit, column)
template <class T, class MassOf>
__device__ __forceinline__ int64_t draw(const T* row, const Segments& segments, Mass target, RowState& state,
                                        const MassOf& mass) {
    __syncthreads();
    if (threadIdx.x == 0) {
        state.segment = walk(static_cast<int>(segments.own), target, [&](int s) { return state.masses[s]; });
    }
    __syncthreads();
    const int64_t start = segments.begin(state.segment.index), end = segments.end(state.segment.index);
    const int64_t run = (end - start + kThreads - 1) / kThreads;
    const auto begin_of = [&](int64_t t) { return start + t * run < end ? start + t * run : end; };
    Mass own = 0;
    for (int64_t v = begin_of(threadIdx.x); v < begin_of(threadIdx.x + 1); ++v) own += mass(widen(row[v]), v);
    const Place thread = walk_threads(own, state.segment.rest, state.selection);
    if (threadIdx.x != 0) return -1;
    const int64_t first = begin_of(thread.index);
    const int length = static_cast<int>(begin_of(thread.index + 1) - first);
    return first + walk(length, thread.rest, [&](int k) { return mass(widen(row[first + k]), first + k); }).index;
}

// Puts the masses of the segments of a row into `state`, and returns their sum. mass(logit, column)
template <class T, class MassOf>
__device__ __forceinline__ Mass weigh(const T* row, const Segments& segments, RowState& state, const MassOf& mass) {
    const unsigned own = static_cast<unsigned>(segments.own);
    if (threadIdx.x < own) state.masses[threadIdx.x] = 0;
    if (threadIdx.x == 0) state.selection.total = 0;
    __syncthreads();
    for (unsigned s = 0; s < own; ++s) {
        const int64_t begin = segments.begin(s);
        Mass sum = 0;
        over_row(row + begin, segments.end(s) - begin,
                 [&](float logit, int, int64_t v) { sum += mass(logit, begin + v); });
        if (sum == 0) continue;
        atomicAdd(&state.masses[s], sum);
        atomicAdd(&state.selection.total, sum);
    }
    __syncthreads();
    const Mass total = state.selection.total;
    __syncthreads();
    return total;
}

// What stays of a row: logits with larger keys, and those of this key up to a column.
struct Kept {
    uint32_t key;
    int64_t last;

    template <class T>
    __device__ __forceinline__ bool has(float logit, int64_t v) const {
        const uint32_t other = key_of<T>(logit);
        return other > key || (other == key && v <= last);
    }
};

constexpr float kLowest = -0x1.fffffep127f;  // the lowest logit that weighs anything

// The least logit that may be among the k largest: the k-th largest of the largest logits of disjoint subsets.
template <class T>
__device__ __forceinline__ uint32_t bound_of_top_k(const T* row, int64_t columns, Mass k, uint32_t low, uint32_t high,
                                                   Selection& shared) {
    if (k > kUnroll * kThreads) return low;
    float maxima[kUnroll];
    for (float& maximum : maxima) maximum = kLowest;
    over_row(row, columns, [&](float logit, int j, int64_t) { maxima[j] = fmaxf(maxima[j], logit); });
    return reach(low, high, k, shared,
                 [&](const auto& add) {
                     for (const float maximum : maxima) add(key_of<T>(maximum), 1);
                 })
        .key;
}

template <class T>
__device__ __forceinline__ Kept keep(const SampleRows& in, const T* row, const Segments& segments, const Masses& masses,
                                     RowState& state) {
    const uint32_t high = key_of<T>(masses.maximum);
    uint32_t low = key_of<T>(kLowest);
    Kept kept{low, in.candidates};
    double total = state.candidates.sum;
    if (in.has_top_k()) {
        const Mass k = static_cast<Mass>(in.top_k);
        low = bound_of_top_k(row, in.candidates, k, low, high, state.selection);
        low = reach(low, high, k, state.selection, [&](const auto& add) {
                  over_row(row, in.candidates, [&](float logit, int, int64_t) { add(key_of<T>(logit), 1); });
              }).key;
        kept.key = low;
        if (!in.has_top_p()) return kept;
        total = static_cast<double>(
                    weigh(row, segments, state,
                          [&](float logit, int64_t) { return key_of<T>(logit) >= low ? masses(logit) : 0; })) /
                kUnit;
    } else {
        if (threadIdx.x == 0) state.bound = static_cast<float>(bound_of_top_p(in, state.candidates));
        __syncthreads();
        const uint32_t bound = key_of<T>(state.bound);
        low = bound > low ? bound : low;
    }
    const Mass goal = static_cast<Mass>(in.top_p * total * kUnit);
    const Reached reached = reach(low, high, goal > 0 ? goal : 1, state.selection, [&](const auto& add) {
        over_row(row, in.candidates, [&](float logit, int, int64_t) { add(key_of<T>(logit), masses(logit)); });
    });
    kept.key = reached.key;
    const Mass each = masses(logit_of<T>(kept.key));
    if (each == 0 || reached.rest + each > reached.mass) return kept;  // with the last of those that are equal
    const auto equal = [&](float logit, int64_t) { return Mass(key_of<T>(logit) == kept.key); };
    weigh(row, segments, state, equal);
    const int64_t last = draw(row, segments, (reached.rest - 1) / each, state, equal);
    if (threadIdx.x == 0) state.segment.rest = static_cast<Mass>(last);
    __syncthreads();
    kept.last = static_cast<int64_t>(state.segment.rest);
    __syncthreads();
    return kept;
}

// The uniform number's place among masses.
__device__ __forceinline__ Mass target_of(double uniform, Mass total) {
    const Mass target = static_cast<Mass>(uniform * static_cast<double>(total));
    return target < total ? target : total - 1;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2) draw_kernel(SampleRows in, DrawnRows out, float scale) {
    __shared__ RowState state;
    const Segments segments(in.columns, in.candidates);
    for (int64_t i = blockIdx.x; i < in.rows; i += gridDim.x) {
        const T* row = static_cast<const T*>(in.logits) + i * in.stride;
        merge_segments(in, segments, i, state);
        if (!drawable(state.candidates, state.all)) {
            if (threadIdx.x == 0) put_broken(out, i);
            __syncthreads();
            continue;
        }
        const Masses masses{static_cast<float>(state.candidates.maximum), scale};
        int64_t token;
        if (in.filtered()) {
            const Kept kept = keep(in, row, segments, masses, state);
            const auto mass = [&](float logit, int64_t v) { return kept.has<T>(logit, v) ? masses(logit) : 0; };
            const Mass total = weigh(row, segments, state, mass);
            token = draw(row, segments, target_of(in.uniforms[i], total), state, mass);
        } else if (in.uniforms == nullptr) {
            if (threadIdx.x < segments.own) state.masses[threadIdx.x] = state.maxima[threadIdx.x] == masses.maximum;
            token = draw(row, segments, 0, state, [&](float logit, int64_t) { return Mass(logit == masses.maximum); });
        } else {
            Mass total = 0;
            if (threadIdx.x == 0) {
                // A segment that might weigh less than a unit a column, and so nothing, is left out.
                const Mass least = static_cast<Mass>(2 * segments.width);
                for (int s = 0; s < segments.own; ++s) {
                    const Mass mass = static_cast<Mass>(state.sums[s] * kUnit);
                    state.masses[s] = mass > least ? mass : 0;
                    total += state.masses[s];
                }
            }
            const Mass target = threadIdx.x == 0 ? target_of(in.uniforms[i], total) : 0;
            token = draw(row, segments, target, state, [&](float logit, int64_t) { return masses(logit); });
        }
        if (threadIdx.x == 0) {
            out.tokens[i] = token;
            out.logp[i] = state.all.log_prob(static_cast<double>(widen(row[token])), in.temperature);
        }
        __syncthreads();
    }
}

}  // namespace

void sample_cuda(const SampleRows& in, const DrawnRows& out, CudaStream stream) {
    if (in.rows == 0) return;
    const float scale = binary_scale<float>(in.temperature), inverse_temperature = scale * static_cast<float>(kLn2);
    const int64_t blocks = in.rows * Segments(in.columns, in.candidates).count();
    with_cuda_type(in.dtype, [&](auto type) {
        launch("sample", parts_kernel<decltype(type)>, blocks_for(blocks), stream, in, inverse_temperature);
        launch("sample", draw_kernel<decltype(type)>, blocks_for(in.rows), stream, in, out, scale);
    });
}

}  // namespace gipo
