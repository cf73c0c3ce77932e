// Attention over the paged cache on the CPU, a query and key head at a time: products with the keys, softmax and
// weighted sum of the values without a mask, a copy of the cache or anything of its length in memory. Each key and
// value is read once for all query heads of its head (up to eight): 4 D bytes a position and key head in bf16, the
// floor.
//
// Order of reduction: a product is summed in sixteen lanes along the head dimension, the lanes in pairs 8, 4, 2 and 1
// apart; a chunk of 128 positions has one maximum, its weights are summed in sixteen lanes, each coordinate of the
// values in the order of positions; chunks are merged in order. AVX2 and AVX-512 give the same bits.
#include "paged_attention.h"

#include "formulas.h"
#include "page_tiles.h"

namespace gipo {
namespace GIPO_ISA {
namespace {

template <int number>
struct Count {
    static constexpr int value = number;
};

// Calls visit(Count, first head) until `count` heads had their turn, so many of them at a time.
template <class Visit>
GIPO_HD void for_heads(int64_t count, const Visit& visit) {
    int64_t h = 0;
    for (; h + kShared <= count; h += kShared) visit(Count<kShared>(), h);
    for (; h < count; ++h) visit(Count<1>(), h);
}

// The query heads of a key head that one pass works on; `query` holds them times scale log2(e), then zeros.
struct Heads {
    int64_t row, head, count, place;  // place: offset of the first of them in queries and results
    float query[kQueryGroup * kWidestHead];
};

// Weights 2^(score - maximum) in place of the scores of `pages` pages.
GIPO_HD void softmax(float* scores, int64_t pages, float& maximum, float& sum) {
    Floats highest(minus_infinity<float>()), sums(0.0f);
    for (int64_t p = 0; p < pages; ++p) {
        const Floats score = load_lanes(scores + p * kPage);
        highest = select(score > highest, score, highest);
    }
    maximum = highest.lane(0);
    for (int k = 1; k < kLanes; ++k) maximum = highest.lane(k) > maximum ? highest.lane(k) : maximum;
    for (int64_t p = 0; p < pages; ++p) {
        const Floats score = load_lanes(scores + p * kPage);
        const Floats weight = power_of_two(exponent_of(score, Floats(maximum), Floats(1.0f)));
        store_lanes(scores + p * kPage, weight);
        sums += weight;
    }
    sum = in_order(sums);
}

template <class T>
void reduce_chunk(const PagedCache& cache, const QueryRows& in, const Heads& heads, int64_t chunk, HeadParts& part) {
    static_assert(kPage == kLanes, "the scores of a page are the lanes of a register");
    const int64_t width = cache.width, begin = chunk * kChunk;
    const int64_t left = in.length[heads.row] - begin, count = left < kChunk ? left : kChunk;
    const int64_t pages = (count + kPage - 1) / kPage;
    float scores[kQueryGroup * kChunk];
    int64_t tiles[kChunk / kPage];
    Floats number;
    for (int k = 0; k < kLanes; ++k) number.set(k, static_cast<float>(k));

    const T* const keys = static_cast<const T*>(cache.keys);
    const T* const values = static_cast<const T*>(cache.values);
    for (int64_t p = 0; p < pages; ++p) {
        tiles[p] = tile_of(cache, page_of(cache, in.slot[heads.row], begin + p * kPage), heads.head);
    }
    // What is read, in that order, and the first keys of the next chunk.
    const T* ahead[2 * kChunk / kPage + kAhead] = {};
    for (int64_t p = 0; p < pages; ++p) {
        ahead[p] = keys + tiles[p];
        ahead[pages + p] = values + tiles[p];
    }
    for (int64_t p = 0; p < kAhead && left > kChunk + p * kPage; ++p) {
        ahead[2 * pages + p] =
            keys + tile_of(cache, page_of(cache, in.slot[heads.row], begin + kChunk + p * kPage), heads.head);
    }
    for (int64_t p = 0; p < pages; ++p) {
        const T* const tile = keys + tiles[p];
        const T* const next = ahead[p + kAhead];
        const Floats end(static_cast<float>(count - p * kPage));
        for_heads(heads.count, [&](auto shared, int64_t h) GIPO_INLINE {
            constexpr int count_of = decltype(shared)::value;
            const auto score =
                products<count_of, 1>(tile, h == 0 ? next : nullptr, 0, width, heads.query + h * kWidestHead);
            for (int k = 0; k < count_of; ++k) {
                store_lanes(scores + (h + k) * kChunk + p * kPage,
                            select(number < end, score.of[k], Floats(minus_infinity<float>())));
            }
        });
    }
    for (int64_t h = 0; h < heads.count; ++h) softmax(scores + h * kChunk, pages, part.maximum[h], part.sum[h]);

    memset(part.values, 0, sizeof(float) * heads.count * kWidestHead);
    for (int64_t p = 0; p < pages; ++p) {
        const T* const tile = values + tiles[p];
        const T* const next = ahead[pages + p + kAhead];
        const int64_t positions = count - p * kPage < kPage ? count - p * kPage : kPage;
        for_heads(heads.count, [&](auto shared, int64_t h) GIPO_INLINE {
            constexpr int count_of = decltype(shared)::value;
            const float* weight = scores + h * kChunk + p * kPage;
            float* sums = part.values + h * kWidestHead;
            int64_t d = 0;
            for (; d + kHeld * kLanes <= width; d += kHeld * kLanes) {
                add_values<count_of, kHeld>(tile, h + d == 0 ? next : nullptr, positions, d, width, weight, kChunk,
                                            sums);
            }
            for (; d < width; d += kLanes) {
                add_values<count_of, 1>(tile, h + d == 0 ? next : nullptr, positions, d, width, weight, kChunk, sums);
            }
        });
    }
}

// Adds a later part to the parts before it.
GIPO_HD void merge(HeadParts& whole, const HeadParts& part, int64_t heads, int64_t width) {
    for (int64_t h = 0; h < heads; ++h) {
        const float highest = part.maximum[h] > whole.maximum[h] ? part.maximum[h] : whole.maximum[h];
        const float of_whole = power_of_two(exponent_of(whole.maximum[h], highest, 1.0f));
        const float of_part = power_of_two(exponent_of(part.maximum[h], highest, 1.0f));
        whole.maximum[h] = highest;
        whole.sum[h] = fused(part.sum[h], of_part, whole.sum[h] * of_whole);
        for (int64_t d = h * kWidestHead; d < h * kWidestHead + width; d += kLanes) {
            const Floats before = load_lanes(whole.values + d) * in_all_lanes(of_whole);
            store_lanes(whole.values + d, fused(load_lanes(part.values + d), in_all_lanes(of_part), before));
        }
    }
}

// The parts of no position.
GIPO_HD void clear(HeadParts& parts, int64_t heads) {
    for (int64_t h = 0; h < heads; ++h) {
        parts.maximum[h] = minus_infinity<float>();
        parts.sum[h] = 0;
    }
    memset(parts.values, 0, sizeof(float) * heads * kWidestHead);
}

// Heads number `group` of a row, in the order row, key head, group of query heads.
GIPO_HD void find_heads(const QueryRows& in, const PagedCache& cache, int64_t group, Heads& heads) {
    const int64_t groups = query_groups(in), item = group / groups, first = group % groups * kQueryGroup;
    heads.row = item / cache.heads;
    heads.head = item % cache.heads;
    heads.count = in.queries - first < kQueryGroup ? in.queries - first : kQueryGroup;
    heads.place = (item * in.queries + first) * cache.width;
}

template <class T>
GIPO_HD void load_queries(const QueryRows& in, int64_t width, Heads& heads) {
    const Floats scale(static_cast<float>(in.scale * kLog2E));
    for (int64_t h = 0; h < heads.count; ++h) {
        const T* query = static_cast<const T*>(in.query) + heads.place + h * width;
        for (int64_t d = 0; d < width; d += kLanes) {
            store_lanes(heads.query + h * kWidestHead + d, numbers_at(query, d, width) * scale);
        }
    }
}

template <class T>
GIPO_HD void write_results(const QueryRows& in, int64_t width, const Heads& heads, const HeadParts& whole) {
    for (int64_t h = 0; h < heads.count; ++h) {
        T* out = static_cast<T*>(in.out) + heads.place + h * width;
        const Floats inverse(in.length[heads.row] > 0 ? 1.0f / whole.sum[h] : 0.0f);
        for (int64_t d = 0; d < width; d += kLanes) {
            const Floats result = load_lanes(whole.values + h * kWidestHead + d) * inverse;
            if (d + kLanes <= width) {
                store_lanes(out + d, result);
            } else {
                store_lanes(out + d, width - d, result);
            }
        }
    }
}

template <class T>
void attend(const QueryRows& in, const PagedCache& cache, int64_t begin, int64_t end) {
    Heads heads;
    HeadParts whole, part;
    for (int64_t group = begin; group < end; ++group) {
        find_heads(in, cache, group, heads);
        load_queries<T>(in, cache.width, heads);
        clear(whole, heads.count);
        for (int64_t chunk = 0; chunk < chunks_of(in.length[heads.row]); ++chunk) {
            reduce_chunk<T>(cache, in, heads, chunk, part);
            merge(whole, part, heads.count, cache.width);
        }
        write_results<T>(in, cache.width, heads, whole);
    }
}

template <class T>
void reduce_chunks(const QueryRows& in, const PagedCache& cache, int64_t chunks, HeadParts* parts, int64_t begin,
                   int64_t end) {
    Heads heads;
    for (int64_t k = begin; k < end; ++k) {
        find_heads(in, cache, k / chunks, heads);
        if (k % chunks >= chunks_of(in.length[heads.row])) continue;
        load_queries<T>(in, cache.width, heads);
        reduce_chunk<T>(cache, in, heads, k % chunks, parts[k]);
    }
}

template <class T>
void merge_chunks(const QueryRows& in, const PagedCache& cache, int64_t chunks, const HeadParts* parts, int64_t begin,
                  int64_t end) {
    Heads heads;
    HeadParts whole;
    for (int64_t group = begin; group < end; ++group) {
        find_heads(in, cache, group, heads);
        clear(whole, heads.count);
        for (int64_t chunk = 0; chunk < chunks_of(in.length[heads.row]); ++chunk) {
            merge(whole, parts[group * chunks + chunk], heads.count, cache.width);
        }
        write_results<T>(in, cache.width, heads, whole);
    }
}

}  // namespace

extern const AttentionKernels attention = {
    {attend<float>, attend<BFloat16>, attend<Float16>},
    {reduce_chunks<float>, reduce_chunks<BFloat16>, reduce_chunks<Float16>},
    {merge_chunks<float>, merge_chunks<BFloat16>, merge_chunks<Float16>},
};

}  // namespace GIPO_ISA
}  // namespace gipo
