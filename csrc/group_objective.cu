// Test: pytest tests/ops/cuda with a GPU, pytest tests/csrc/test_csrc.py -k fibers on any CPU
//
// Op B on CUDA: one block a sequence, then one block for four groups' sums over sequences (2 launches forward, 1
// backward); 16 bytes a float32 token forward, 20 backward, whatever the number of groups. At 1024 float32 tokens a
// thread has its four tokens of all four inputs, 64 bytes, in flight at once.
//
// Order of reduction: a thread takes every 256th pack of 16 bytes, then single tokens; then the butterfly of
// block_reduce.
#include "group_objective.h"
#include "group_sums.cuh"

namespace gipo {
namespace {

// The first `columns` tokens of sequence i in the four inputs, cut alike.
template <class T>
struct TokenRow {
    const T *logp, *behaviour, *reference, *advantage;

    __device__ __forceinline__ TokenRow(const ObjectiveRows& in, int64_t i)
        : logp(static_cast<const T*>(in.logp) + i * in.time),
          behaviour(static_cast<const T*>(in.behaviour) + i * in.time),
          reference(static_cast<const T*>(in.reference) + i * in.time),
          advantage(static_cast<const T*>(in.advantage) + i * in.time) {}

    // Calls visit(logp, behaviour, reference, advantage) for `count` tokens from t on; 16-byte loads for a whole pack.
    template <int count, class Visit>
    __device__ __forceinline__ void tokens(int64_t t, const Visit& visit) const {
        if constexpr (count == 1) {
            visit(0, widen(logp[t]), widen(behaviour[t]), widen(reference[t]), widen(advantage[t]));
        } else {
            float values[4][kPack<T>];
            const T* const rows[4] = {logp, behaviour, reference, advantage};
            uint4 packs[4];
#pragma unroll
            for (int r = 0; r < 4; ++r) packs[r] = read_once(rows[r] + t);
#pragma unroll
            for (int r = 0; r < 4; ++r) unpack<T>(packs[r], values[r]);
#pragma unroll
            for (int k = 0; k < count; ++k) visit(k, values[0][k], values[1][k], values[2][k], values[3][k]);
        }
    }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    sequences_kernel(ObjectiveRows in, ObjectiveFormula<float> formula,
                     const float* __restrict__ behaviour_signal,  // [B] in
                     float* __restrict__ sequences) {             // [kSequenceFields, B] out
    __shared__ float shared[kWarps][kSequenceFields];
    for (int64_t i = blockIdx.x; i < in.batch; i += gridDim.x) {
        const int64_t length = bounded_length(in.length[i], in.time);
        const TokenRow<T> row(in, i);
        const RowCut cut = cut_row(row.logp, length, row.behaviour, row.reference, row.advantage);
        float values[kSequenceFields] = {};
        const auto add = [&](int, float logp, float behaviour, float reference, float advantage) {
            const ObjectiveToken<float> token = formula.token(logp, behaviour, reference, advantage);
            values[kSignal] += token.signal;
            values[kSurrogate] += token.surrogate;
            values[kKl] += token.kl;
            values[kClipped] += token.clipped;
            values[kRatioMax] = larger(values[kRatioMax], token.ratio);
            values[kBehaviourKl] += token.behaviour_kl;
        };
        for (int64_t pack = threadIdx.x; pack < cut.packs; pack += kThreads) {
            row.template tokens<kPack<T>>(cut.head + pack * kPack<T>, add);
        }
        for (int64_t n = threadIdx.x; n < cut.singles(); n += kThreads) row.template tokens<1>(cut.single(n), add);

        const float total = block_totals(
            values, shared, [](int field, float a, float b) { return field == kRatioMax ? larger(a, b) : a + b; });
        if (threadIdx.x == kSignal) {
            sequences[kSignal * in.batch + i] = formula.sequence_signal(total, behaviour_signal[i], length);
        } else if (threadIdx.x < kSequenceFields) {
            sequences[threadIdx.x * in.batch + i] = total;
        }
    }
}

template <class T, int estimator>
__global__ void __launch_bounds__(kThreads)
    objective_gradient_kernel(ObjectiveRows in, ObjectiveFormula<float> formula, ObjectiveGradient gradient) {
    formula.estimator = estimator;  // known to the compiler: less than half the instructions
    for (int64_t i = blockIdx.x; i < in.batch; i += gridDim.x) {
        const int64_t length = bounded_length(in.length[i], in.time);
        const SequenceSlope<float> slope = sequence_slope<float>(in, gradient, i, length, formula);
        const TokenRow<T> row(in, i);
        T* out = static_cast<T*>(gradient.logp_out) + i * in.time;
        const auto at = [&](float logp, float behaviour, float reference, float advantage) {
            return formula.slope(logp, behaviour, reference, advantage, slope.signal, slope.surrogate, slope.kl);
        };
        const RowCut cut = cut_row(row.logp, length, row.behaviour, row.reference, row.advantage, out);
        for (int64_t pack = threadIdx.x; pack < cut.packs; pack += kThreads) {
            const int64_t start = cut.head + pack * kPack<T>;
            float values[kPack<T>];
            row.template tokens<kPack<T>>(start,
                                          [&](int k, float logp, float behaviour, float reference, float advantage) {
                                              values[k] = at(logp, behaviour, reference, advantage);
                                          });
            write_pack(out + start, packed<T>(values));
        }
        for (int64_t n = threadIdx.x; n < cut.singles(); n += kThreads) {
            const int64_t t = cut.single(n);
            row.template tokens<1>(t, [&](int, float logp, float behaviour, float reference, float advantage) {
                out[t] = Narrow<T>::from(at(logp, behaviour, reference, advantage));
            });
        }
        zero_row(out + length, in.time - length);
        probs_gradient(in, gradient, i);
    }
}

}  // namespace

void group_objective_cuda(const ObjectiveRows& in, const void* behaviour_signal, void* sequences, void* sums,
                          CudaStream stream) {
    if (in.batch > 0) {
        with_cuda_type(in.dtype, [&](auto type) {
            launch("group_objective", sequences_kernel<decltype(type)>, blocks_for(in.batch), stream, in,
                   ObjectiveFormula<float>(in.options), static_cast<const float*>(behaviour_signal),
                   static_cast<float*>(sequences));
        });
    }
    launch("group_objective", sums_kernel, blocks_for_sums(in.groups), stream, in, static_cast<const float*>(sequences),
           static_cast<float*>(sums));
}

void group_objective_gradient_cuda(const ObjectiveRows& in, const ObjectiveGradient& gradient, CudaStream stream) {
    if (in.batch == 0) return;
    with_cuda_type(in.dtype, [&](auto type) {
        using T = decltype(type);
        const auto kernel = in.options.estimator == kK1   ? objective_gradient_kernel<T, kK1>
                            : in.options.estimator == kK2 ? objective_gradient_kernel<T, kK2>
                                                          : objective_gradient_kernel<T, kK3>;
        launch("group_objective_gradient", kernel, blocks_for(in.batch), stream, in,
               ObjectiveFormula<float>(in.options), gradient);
    });
}

}  // namespace gipo
