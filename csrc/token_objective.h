// Ops A and B joined, for a vocabulary that is not split over ranks: logits of packed response tokens in, the group
// objective out. What the CPU and the CUDA kernels take. A is float32, or float64 for float64 logits.
#pragma once

#include "group_objective.h"
#include "token_statistics.h"

namespace gipo {

struct JoinedRows {
    LogitRows logits;      // the tokens of sequence 0, then those of sequence 1, ...; first = 0
    ObjectiveRows tokens;  // of type A; logp is not used, it comes from the logits
    const int64_t* start;  // [B] in: row of each sequence's first token
    int64_t chunk;         // CUDA: tokens of one block, at most 32
};

// Planes of the [kTokenFields, rows] buffer `statistics`; the last two are those of RowField.
enum TokenField : int { kTokenLogp, kTokenEntropy, kTokenMaximum, kTokenLogSum, kTokenFields };

// Planes of the [kJoinedFields, B] buffer `sequences`: op B's (SequenceField), then the sum of the entropies.
enum JoinedField : int { kEntropySum = kSequenceFields, kJoinedFields };

struct JoinedResults {
    void* statistics;  // [kTokenFields, rows] out, A
    void* chunks;      // [kJoinedFields, B, ceil(T / chunk)] scratch of CUDA, A
    void* sequences;   // [kJoinedFields, B] out, A
    void* sums;        // [kGroupFields M + 1] out, A
};

// behaviour_signal: [B] in, A.
void token_objective_cpu(const JoinedRows& in, const void* behaviour_signal, const JoinedResults& out, int threads);
void token_objective_cuda(const JoinedRows& in, const void* behaviour_signal, const JoinedResults& out,
                          CudaStream stream);

struct JoinedGradient {
    ObjectiveGradient objective;  // logp_out is not used
    const void* statistics;       // [kTokenFields, rows] in, A: of the forward pass
    const void* of_entropy;       // [B] in, A; null: 0
    int64_t width;                // columns to write: real ones, then padding (0)
    void* out;                    // [rows, width] out, of the logits' type; may be the logits themselves
    int64_t stride;
};

void token_objective_gradient_cpu(const JoinedRows& in, const JoinedGradient& gradient, int threads);
void token_objective_gradient_cuda(const JoinedRows& in, const JoinedGradient& gradient, CudaStream stream);

// Tokens of sequence i: inside the buffers whatever lengths the caller gave.
GIPO_HD int64_t token_count(const JoinedRows& in, int64_t i) {
    return bounded_length(bounded_length(in.tokens.length[i], in.tokens.time), in.logits.rows - in.start[i]);
}

}  // namespace gipo
