// Test: pytest tests/ops/cuda with a GPU, pytest tests/csrc/test_csrc.py -k fibers on any CPU
//
// Ops A and B joined on CUDA: a block takes a few consecutive tokens of one sequence, reduces each one's row of logits
// as op A does and turns it into op B's terms at once. The logits are read once forward (2 bytes in bf16), read and
// written once backward (4 bytes); what is kept for the backward pass is 16 bytes a token, and what passes between the
// 3 forward launches is 28 bytes a chunk. Backward is one launch: each token's coefficients come from its sequence's.
//
// Order of reduction: rows as in token_rows.cuh; the tokens of a chunk in order; chunks as block_reduce takes them.
#include "group_sums.cuh"
#include "token_objective.h"
#include "token_rows.cuh"

namespace gipo {
namespace {

GIPO_HD int64_t chunks_of(int64_t tokens, int64_t chunk) {
    return (tokens + chunk - 1) / chunk;
}

// The chunk of a block. Every sequence has one at time 0, even without tokens.
struct Chunk {
    int64_t sequence, time, row;
    int count;
};
__device__ __forceinline__ Chunk chunk_at(const JoinedRows& in, int64_t block, int64_t per_sequence) {
    const int64_t sequence = block / per_sequence, time = block % per_sequence * in.chunk;
    const int64_t left = token_count(in, sequence) - time;
    return {sequence, time, in.start[sequence] + time, static_cast<int>(bounded_length(left, in.chunk))};
}

__device__ __forceinline__ const float* token_at(const void* tokens, const ObjectiveRows& in, const Chunk& chunk) {
    return static_cast<const float*>(tokens) + chunk.sequence * in.time + chunk.time;
}

template <class T>
__device__ __forceinline__ const T* logits_at(const LogitRows& in, int64_t row) {
    return static_cast<const T*>(in.logits) + row * in.stride;
}

template <class T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    chunks_kernel(JoinedRows in, ObjectiveFormula<float> formula, float inverse_temperature, int64_t per_sequence,
                  float* __restrict__ statistics,  // [kTokenFields, rows] out
                  float* __restrict__ chunks) {    // [kJoinedFields, B, per_sequence] out
    __shared__ Part shared[kWarps], wholes[kWarp];
    __shared__ float terms[kJoinedFields][kWarp];
    const int64_t rows = in.logits.rows, blocks = in.tokens.batch * per_sequence;
    const int k = static_cast<int>(threadIdx.x);
    for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
        const Chunk chunk = chunk_at(in, block, per_sequence);
        if (chunk.count == 0) continue;
        for (int r = 0; r < chunk.count; ++r) {
            const Part whole =
                row_part(logits_at<T>(in.logits, chunk.row + r), in.logits.columns, inverse_temperature, shared);
            if (k == r) wholes[r] = whole;
        }
        if (k < chunk.count) {  // thread k wrote wholes[k] itself
            const int64_t row = chunk.row + k, target = in.logits.targets[row];
            const float logit = target >= 0 && target < in.logits.columns ? widen(logits_at<T>(in.logits, row)[target])
                                                                          : minus_infinity<float>();
            const TokenResult<float> token = token_result(wholes[k], logit, inverse_temperature);
            statistics[kTokenLogp * rows + row] = token.logp;
            statistics[kTokenEntropy * rows + row] = token.entropy;
            statistics[kTokenMaximum * rows + row] = wholes[k].maximum;
            statistics[kTokenLogSum * rows + row] = token.log_sum;
            const ObjectiveToken<float> term = formula.token(
                token.logp, token_at(in.tokens.behaviour, in.tokens, chunk)[k],
                token_at(in.tokens.reference, in.tokens, chunk)[k], token_at(in.tokens.advantage, in.tokens, chunk)[k]);
            terms[kSignal][k] = term.signal;
            terms[kSurrogate][k] = term.surrogate;
            terms[kKl][k] = term.kl;
            terms[kClipped][k] = term.clipped;
            terms[kRatioMax][k] = term.ratio;
            terms[kBehaviourKl][k] = term.behaviour_kl;
            terms[kEntropySum][k] = token.entropy;
        }
        __syncthreads();
        if (k < kJoinedFields) {
            float total = terms[k][0];
            for (int r = 1; r < chunk.count; ++r) {
                total = k == kRatioMax ? larger(total, terms[k][r]) : total + terms[k][r];
            }
            chunks[k * blocks + block] = total;
        }
    }
}

__global__ void __launch_bounds__(kThreads)
    sequences_kernel(JoinedRows in, ObjectiveFormula<float> formula, int64_t per_sequence,
                     const float* __restrict__ behaviour_signal,  // [B] in
                     const float* __restrict__ chunks,            // [kJoinedFields, B, per_sequence] in
                     float* __restrict__ sequences) {             // [kJoinedFields, B] out
    __shared__ float shared[kWarps][kJoinedFields];
    const int64_t batch = in.tokens.batch;
    const auto combine = [](int field, float a, float b) { return field == kRatioMax ? larger(a, b) : a + b; };
    for (int64_t i = blockIdx.x; i < batch; i += gridDim.x) {
        const int64_t length = token_count(in, i), count = chunks_of(length, in.chunk);
        float values[kJoinedFields] = {};
        for (int64_t c = threadIdx.x; c < count; c += kThreads) {
#pragma unroll
            for (int field = 0; field < kJoinedFields; ++field) {
                values[field] = combine(field, values[field], chunks[(field * batch + i) * per_sequence + c]);
            }
        }
        const float total = block_totals(values, shared, combine);
        if (threadIdx.x == kSignal) {
            sequences[kSignal * batch + i] = formula.sequence_signal(total, behaviour_signal[i], length);
        } else if (threadIdx.x < kJoinedFields) {
            sequences[threadIdx.x * batch + i] = total;
        }
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    gradient_kernel(JoinedRows in, JoinedGradient gradient, ObjectiveFormula<float> formula, float inverse_temperature,
                    int64_t per_sequence) {
    __shared__ TokenSlope<float> slopes[kWarp];
    const float* statistics = static_cast<const float*>(gradient.statistics);
    const int64_t rows = in.logits.rows, blocks = in.tokens.batch * per_sequence;
    const int k = static_cast<int>(threadIdx.x);
    for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
        // Backwards, for what forward read last may still be in the L2 cache.
        const Chunk chunk = chunk_at(in, blocks - 1 - block, per_sequence);
        if (chunk.time == 0) probs_gradient(in.tokens, gradient.objective, chunk.sequence);
        if (k < chunk.count) {
            const SequenceSlope<float> of = sequence_slope<float>(in.tokens, gradient.objective, chunk.sequence,
                                                                  token_count(in, chunk.sequence), formula);
            const int64_t row = chunk.row + k, target = in.logits.targets[row];
            const float slope =
                formula.slope(statistics[kTokenLogp * rows + row], token_at(in.tokens.behaviour, in.tokens, chunk)[k],
                              token_at(in.tokens.reference, in.tokens, chunk)[k],
                              token_at(in.tokens.advantage, in.tokens, chunk)[k], of.signal, of.surrogate, of.kl);
            slopes[k] = {statistics[kTokenMaximum * rows + row],
                         statistics[kTokenLogSum * rows + row],
                         statistics[kTokenEntropy * rows + row],
                         target >= 0 && target < in.logits.columns ? slope : 0.0f,
                         upstream_at<float>(gradient.of_entropy, chunk.sequence),
                         inverse_temperature};
        }
        __syncthreads();
        for (int r = 0; r < chunk.count; ++r) {
            const int64_t row = chunk.row + r;
            gradient_padded_row(logits_at<T>(in.logits, row), static_cast<T*>(gradient.out) + row * gradient.stride,
                                in.logits.columns, gradient.width, in.logits.targets[row],
                                TokenSlope<float>(slopes[r]));
        }
        __syncthreads();  // `slopes` is free again
    }
}

void check_chunk(int64_t chunk) {
    if (chunk >= 1 && chunk <= kWarp) return;
    throw std::invalid_argument("gipo_mc._C: a chunk of token_objective has 1 to 32 tokens, not " +
                                std::to_string(chunk) + ".");
}

}  // namespace

void token_objective_cuda(const JoinedRows& in, const void* behaviour_signal, const JoinedResults& out,
                          CudaStream stream) {
    check_chunk(in.chunk);
    const ObjectiveFormula<float> formula(in.tokens.options);
    const int64_t per_sequence = chunks_of(in.tokens.time, in.chunk);
    if (in.tokens.batch > 0) {
        with_cuda_type(in.logits.dtype, [&](auto type) {
            if (per_sequence == 0) return;
            launch("token_objective", chunks_kernel<decltype(type)>, blocks_for(in.tokens.batch * per_sequence), stream,
                   in, formula, static_cast<float>(1.0 / in.logits.temperature), per_sequence,
                   static_cast<float*>(out.statistics), static_cast<float*>(out.chunks));
        });
        launch("token_objective", sequences_kernel, blocks_for(in.tokens.batch), stream, in, formula, per_sequence,
               static_cast<const float*>(behaviour_signal), static_cast<const float*>(out.chunks),
               static_cast<float*>(out.sequences));
    }
    launch("token_objective", sums_kernel, blocks_for_sums(in.tokens.groups), stream, in.tokens,
           static_cast<const float*>(out.sequences), static_cast<float*>(out.sums));
}

void token_objective_gradient_cuda(const JoinedRows& in, const JoinedGradient& gradient, CudaStream stream) {
    check_chunk(in.chunk);
    if (in.tokens.batch == 0) return;
    const int64_t per_sequence = std::max<int64_t>(1, chunks_of(in.tokens.time, in.chunk));
    with_cuda_type(in.logits.dtype, [&](auto type) {
        launch("token_objective_gradient", gradient_kernel<decltype(type)>, blocks_for(in.tokens.batch * per_sequence),
               stream, in, gradient, ObjectiveFormula<float>(in.tokens.options),
               static_cast<float>(1.0 / in.logits.temperature), per_sequence);
    });
}

}  // namespace gipo
