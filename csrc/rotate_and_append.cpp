// Rotation and append on the CPU: one pass over the tokens' queries, keys and values, sixteen numbers at a time. Reads
// and writes each number once (4 bytes a bf16 number), the least there is, and 4 D bytes of sines and cosines a token,
// which stay in the cache. Rounded once to the type of the cache; nothing is summed.
#include "rotate_and_append.h"

#include "cpu.h"
#include "lanes.h"

namespace gipo {
namespace GIPO_ISA {
namespace {

template <class T>
GIPO_HD void rotate_head(const T* from, T* to, int64_t half, const float* cos, const float* sin) {
    int64_t d = 0;
    for (; d + kLanes <= half; d += kLanes) {
        const auto pair =
            rotated(load_lanes(from + d), load_lanes(from + half + d), load_lanes(cos + d), load_lanes(sin + d));
        store_lanes(to + d, pair.first);
        store_lanes(to + half + d, pair.second);
    }
    for (; d < half; ++d) {
        const auto pair = rotated(widen(from[d]), widen(from[half + d]), cos[d], sin[d]);
        to[d] = Narrow<T>::from(pair.first);
        to[half + d] = Narrow<T>::from(pair.second);
    }
}

template <class T>
void append_tokens(const NewTokens& in, const PagedCache& cache, int64_t begin, int64_t end) {
    const int64_t width = cache.width, half = width / 2;
    for (int64_t n = begin; n < end; ++n) {
        const T* from = static_cast<const T*>(in.qkv) + n * in.stride;
        T* query = static_cast<T*>(in.query) + n * cache.heads * in.queries * width;
        const int64_t page = page_of_token(in, cache, n);
        if (page < 0) {
            memset(query, 0, cache.heads * in.queries * width * sizeof(T));
            continue;
        }
        const float* cos = in.cos + in.position[n] * half;
        const float* sin = in.sin + in.position[n] * half;
        for (int64_t head = 0; head < cache.heads; ++head) {
            for (int64_t j = 0; j < in.queries; ++j, from += width, query += width) {
                rotate_head(from, query, half, cos, sin);
            }
            const int64_t place = tile_of(cache, page, head) + in.position[n] % kPage * width;
            rotate_head(from, static_cast<T*>(cache.keys) + place, half, cos, sin);
            memcpy(static_cast<T*>(cache.values) + place, from + width, width * sizeof(T));
            from += 2 * width;
        }
    }
}

}  // namespace

extern const AppendKernels append = {
    {append_tokens<float>, append_tokens<BFloat16>, append_tokens<Float16>},
};

}  // namespace GIPO_ISA
}  // namespace gipo
