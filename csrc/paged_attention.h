// Attention of single queries over a paged cache: what the CPU and the CUDA kernels take. Sizes and strides count
// elements.
#pragma once

#include "paged_cache.h"

namespace gipo {

// Positions are reduced in chunks of this number, and chunks in order: results depend neither on the number of threads
// nor on the other queries.
constexpr int64_t kChunk = 128;

struct QueryRows {
    const void* query;  // [rows, heads of the cache * queries, width] in, of the cache's type
    int64_t rows;
    int64_t queries;        // query heads of a key head
    const int64_t* slot;    // [rows] in
    const int64_t* length;  // [rows] in: positions 0 .. length - 1 are seen; none: zeros
    double scale;
    void* out;  // [rows, heads of the cache * queries, width] out, of the cache's type
};

GIPO_HD int64_t chunks_of(int64_t positions) {
    return (positions + kChunk - 1) / kChunk;
}

constexpr int64_t kQueryGroup = 8;  // query heads of a key head that the CPU works on at a time

GIPO_HD int64_t query_groups(const QueryRows& in) {
    return (in.queries + kQueryGroup - 1) / kQueryGroup;
}

// Their softmax over some positions. The scores are taken times log2(e).
struct HeadParts {
    float maximum[kQueryGroup];
    float sum[kQueryGroup];                   // of 2^(score - maximum)
    float values[kQueryGroup * kWidestHead];  // weighted by that
};

void paged_attention_cpu(const QueryRows& in, const PagedCache& cache, int threads);

// What the CUDA kernel reduces a chunk to, for a query head: weighted values, padded to multiples of eight, then the
// maximum and the sum of the weights; padded, so that parts stay at 16-byte boundaries.
GIPO_HD int64_t part_maximum(const PagedCache& cache) {
    return (cache.width + 7) / 8 * 8;
}
GIPO_HD int64_t part_size(const PagedCache& cache) {
    return part_maximum(cache) + 4;
}

// parts: [rows, heads of the cache * queries, chunks_of(slot_pages * kPage), part_size] floats to work in.
void paged_attention_cuda(const QueryRows& in, const PagedCache& cache, float* parts, CudaStream stream);

}  // namespace gipo
