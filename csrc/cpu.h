// The CPU kernels over a range of rows, compiled once for every instruction set that a machine of the architecture may
// have (CMakeLists.txt), and the choice among them at run time.
//
// What is compiled for an instruction set lives in the namespace GIPO_ISA and instantiates nothing of the standard
// library: a function that the linker shares between object files might otherwise hold instructions that a machine
// lacks. tests/csrc/test_csrc.py holds that.
#pragma once

#include "causal_attention.h"
#include "group_objective.h"
#include "layer_rows.h"
#include "paged_attention.h"
#include "rotate_and_append.h"
#include "sampling.h"
#include "shape_and_gae.h"
#include "token_statistics.h"

#ifndef GIPO_ISA
#define GIPO_ISA plain
#endif

namespace gipo {

constexpr int kDTypes = 4;  // the arrays below are indexed by DType

struct TokenRowKernels {
    void (*partials[kDTypes])(const LogitRows& in, void* partials, int64_t begin, int64_t end);
    void (*results[kDTypes])(const LogitRows& in, const TokenResults& out, int64_t begin, int64_t end);
    void (*gradient[kDTypes])(const LogitRows& in, const LogitGradient& gradient, int64_t begin, int64_t end);
};

struct ObjectiveRowKernels {
    void (*forward[kDTypes])(const ObjectiveRows& in, const void* behaviour_signal, void* sequences, int64_t begin,
                             int64_t end);
    void (*backward[kDTypes])(const ObjectiveRows& in, const ObjectiveGradient& gradient, int64_t begin, int64_t end);
};

struct ShapingRowKernels {
    void (*shape[kDTypes])(const RewardRows& in, const ShapedRows& out, int64_t begin, int64_t end);
};

constexpr int kCachedDTypes = 3;  // the same, without float64

struct AppendKernels {
    void (*tokens[kCachedDTypes])(const NewTokens& in, const PagedCache& cache, int64_t begin, int64_t end);
};

// Ranges are of query groups (query_groups() of them for each row and key head), or of their chunks.
struct AttentionKernels {
    void (*whole[kCachedDTypes])(const QueryRows& in, const PagedCache& cache, int64_t begin, int64_t end);
    void (*reduce[kCachedDTypes])(const QueryRows& in, const PagedCache& cache, int64_t chunks, HeadParts* parts,
                                  int64_t begin, int64_t end);
    void (*merge[kCachedDTypes])(const QueryRows& in, const PagedCache& cache, int64_t chunks, const HeadParts* parts,
                                 int64_t begin, int64_t end);
};

struct SamplingRowKernels {
    void (*draw[kDTypes])(const SampleRows& in, const DrawnRows& out, void* room, int64_t begin, int64_t end);
};

// Ranges are of key heads, those of one sequence after those of another.
struct SequenceKernels {
    void (*attend)(const Sequences& in, float* seen, float* room, int64_t begin, int64_t end);
    void (*gradient)(const Sequences& in, const SeenGradient& gradient, float* room, int64_t begin, int64_t end);
};

struct LayerKernels {
    void (*norm)(const NormRows& in, const NormResults& out, int64_t begin, int64_t end);
    void (*norm_gradient)(const NormRows& in, const NormGradient& gradient, int64_t begin, int64_t end);
    void (*gated)(const GatedRows& in, float* out, int64_t begin, int64_t end);
    void (*gated_gradient)(const GatedRows& in, const float* of_out, float* of_both, int64_t begin, int64_t end);
};

struct InstructionSet {
    const char* name;
    const TokenRowKernels* token;
    const ObjectiveRowKernels* objective;
    const ShapingRowKernels* shaping;
    const AppendKernels* append;
    const AttentionKernels* attention;
    const SamplingRowKernels* sampling;
    const SequenceKernels* sequences;
    const LayerKernels* layers;
};

#define GIPO_DECLARE_ROWS(isa)                       \
    namespace isa {                                  \
    extern const TokenRowKernels token_rows;         \
    extern const ObjectiveRowKernels objective_rows; \
    extern const ShapingRowKernels shaping_rows;     \
    extern const AppendKernels append;               \
    extern const AttentionKernels attention;         \
    extern const SamplingRowKernels sampling_rows;   \
    extern const SequenceKernels sequences;          \
    extern const LayerKernels layer_rows;            \
    }
GIPO_DECLARE_ROWS(plain)
GIPO_DECLARE_ROWS(avx2)
GIPO_DECLARE_ROWS(avx512)
#undef GIPO_DECLARE_ROWS

// The best one that this machine has, or the one that the environment variable GIPO_MC_CPU names; chosen at the first
// call. Throws std::invalid_argument for a name that is not known, not built or not to be run here.
const InstructionSet& instruction_set();

}  // namespace gipo
