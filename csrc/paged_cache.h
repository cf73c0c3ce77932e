// A paged key-value cache of one layer, as the two ops over it see it: rotate_and_append.h writes, paged_attention.h
// reads. Sizes and strides count elements.
#pragma once

#include "numbers.h"

namespace gipo {

constexpr int64_t kPage = 16;         // positions of a page; PAGE of gipo_mc/ops/paged_attention.py
constexpr int64_t kWidestHead = 256;  // largest head dimension; WIDEST_HEAD there

// Position t of slot s is row t % kPage of the tiles [kPage, width] of page table[s, t / kPage], one for each head.
struct PagedCache {
    void* keys;    // [pages, heads, kPage, width] of `dtype`
    void* values;  // the same
    DType dtype;   // float32, bfloat16 or float16
    int64_t pages, heads, width;
    const int32_t* table;  // [slots, slot_pages] in, rows `table_stride` apart
    int64_t slots, slot_pages, table_stride;
};

// The page that holds a position of a slot; -1 where the slot, the position or the page is not there.
GIPO_HD int64_t page_of(const PagedCache& cache, int64_t slot, int64_t position) {
    const bool inside = slot >= 0 && slot < cache.slots && position >= 0 && position < cache.slot_pages * kPage;
    const int64_t page = inside ? cache.table[slot * cache.table_stride + position / kPage] : -1;
    return page < cache.pages ? page : -1;
}

// Offset of a tile.
GIPO_HD int64_t tile_of(const PagedCache& cache, int64_t page, int64_t head) {
    return (page * cache.heads + head) * kPage * cache.width;
}

}  // namespace gipo
