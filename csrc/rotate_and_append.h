// Rotary embedding of queries and keys, and keys and values into the paged cache: what the CPU and the CUDA kernels
// take. Sizes and strides count elements.
#pragma once

#include "paged_cache.h"

namespace gipo {

struct NewTokens {
    const void* qkv;  // [rows, heads of the cache, queries + 2, width] in, of the cache's type; rows `stride` apart
    int64_t rows, stride;
    int64_t queries;   // query heads of a key head
    const float* cos;  // [positions, width / 2] in
    const float* sin;  // the same
    int64_t positions;
    const int64_t* slot;      // [rows] in
    const int64_t* position;  // [rows] in; negative: the token is written nowhere
    void* query;              // [rows, heads of the cache * queries, width] out; zeros for a token that is not written
};

void rotate_and_append_cpu(const NewTokens& in, const PagedCache& cache, int threads);
void rotate_and_append_cuda(const NewTokens& in, const PagedCache& cache, CudaStream stream);

// Where token n goes, or -1: nowhere.
GIPO_HD int64_t page_of_token(const NewTokens& in, const PagedCache& cache, int64_t n) {
    return in.position[n] < in.positions ? page_of(cache, in.slot[n], in.position[n]) : -1;
}

template <class A>
struct Rotated {
    A first, second;
};

// The two coordinates of a rotary pair after the rotation.
template <class A>
GIPO_HD Rotated<A> rotated(A first, A second, A cos, A sin) {
    return {first * cos - second * sin, second * cos + first * sin};
}

}  // namespace gipo
