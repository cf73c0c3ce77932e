// Inputs and outputs for the ops over a paged cache, as cases.h has them for the others.
#pragma once

#include <algorithm>

#include "cases.h"
#include "paged_attention.h"
#include "rotate_and_append.h"

namespace gipo {

// Tokens into a paged cache whose pages hold NaN, and queries over what its slots hold then. Slot k of the cache has
// lengths[k] positions; each is written by the op, and seen by one query for each slot.
template <class T>
struct CacheCase {
    int64_t heads, queries, width, offset, rows = 0, pages = 1, slot_pages = 1;
    std::vector<int64_t> length, row_slot, position, slot;
    std::vector<int32_t> table;
    std::vector<T> qkv;
    std::vector<float> cos, sin;

    // offset: elements between a 16-byte boundary and the first of each buffer.
    CacheCase(std::vector<int64_t> lengths, int64_t heads, int64_t queries, int64_t width, int64_t offset)
        : heads(heads), queries(queries), width(width), offset(offset), length(lengths) {
        const int64_t slots = length.size();
        int64_t longest = 1;
        for (int64_t k = 0; k < slots; ++k) {
            for (int64_t t = 0; t < length[k]; ++t) {
                row_slot.push_back(k);
                position.push_back(t);
            }
            slot.push_back(k);
            longest = length[k] > longest ? length[k] : longest;
        }
        row_slot.push_back(0);
        position.push_back(-1);
        rows = position.size();
        slot_pages = (longest + kPage - 1) / kPage;
        table.assign(slots * slot_pages, -1);
        for (int64_t k = 0; k < slots; ++k) {
            for (int64_t p = 0; p * kPage < length[k]; ++p) table[k * slot_pages + p] = static_cast<int32_t>(pages++);
        }
        for (int32_t& page : table) page = page < 0 ? -1 : static_cast<int32_t>(pages - 1 - page);  // in reverse
        qkv = normal<T>(offset + rows * stride(), 1.0);
        cos = normal<float>(longest * (width / 2), 0.7);
        sin = normal<float>(longest * (width / 2), 0.7);
    }
    int64_t stride() const { return heads * (queries + 2) * width + 8; }

    template <class Append, class Attend>
    std::vector<std::vector<float>> run(Append append, Attend attend) const {
        const int64_t slots = length.size(), numbers = heads * queries * width;
        const T nothing = Narrow<T>::from(NAN);
        std::vector<T> keys(offset + pages * heads * kPage * width, nothing), values = keys;
        std::vector<T> query(offset + rows * numbers, nothing), last(offset + slots * numbers), out = last;
        const PagedCache cache{keys.data() + offset,
                               values.data() + offset,
                               kCode<T>,
                               pages,
                               heads,
                               width,
                               table.data(),
                               slots,
                               slot_pages,
                               slot_pages};
        append(NewTokens{qkv.data() + offset, rows, stride(), queries, cos.data(), sin.data(),
                         static_cast<int64_t>(cos.size()) / (width / 2), row_slot.data(), position.data(),
                         query.data() + offset},
               cache);
        int64_t first = 0;
        for (int64_t k = 0; k < slots; ++k) {  // the query of the last token, or, of an empty slot, any
            first += length[k];
            std::copy_n(query.data() + offset + (first > 0 ? first - 1 : 0) * numbers, numbers,
                        last.data() + offset + k * numbers);
        }
        attend(QueryRows{last.data() + offset, slots, queries, slot.data(), length.data(), 0.3, out.data() + offset},
               cache);
        std::vector<std::vector<float>> results(4);
        const std::vector<T>* const buffers[] = {&query, &keys, &values, &out};
        for (int k = 0; k < 4; ++k) {
            for (size_t i = offset; i < buffers[k]->size(); ++i) results[k].push_back(widen((*buffers[k])[i]));
        }
        return results;
    }
};

template <class T>
std::vector<std::vector<float>> run_on_cpu(const CacheCase<T>& c, int threads) {
    return c.run([&](const NewTokens& in, const PagedCache& cache) { rotate_and_append_cpu(in, cache, threads); },
                 [&](const QueryRows& in, const PagedCache& cache) { paged_attention_cpu(in, cache, threads); });
}

// Calls visit(case) over head sizes, query heads and lengths around every width that the kernels step by: of wide heads
// up to two chunks of positions, of the others three.
template <class T, class Visit>
void for_each_cache_case(Visit&& visit) {
    int k = 0;
    for (const int64_t width : {2, 8, 12, 16, 40, 64, 80, 136, 256}) {
        const int64_t longest = width > 64 ? 130 : 300;
        visit(CacheCase<T>({0, 1, 15, 16, 17, 5, longest}, 1 + k % 2, 1 + k % 5, width, k % 3 == 1 ? 3 : 0));
        ++k;
    }
    visit(CacheCase<T>({40}, 2, 11, 32, 0));
    visit(CacheCase<T>({}, 1, 2, 16, 0));
}

}  // namespace gipo
