// The CPU side of the two ops over the paged cache: ids and lengths are looked at here, where that costs next to
// nothing, and the work is split over threads; what is done with it is in rotate_and_append.cpp and
// paged_attention.cpp.
#include <memory>

#include "cpu.h"
#include "dtypes.h"
#include "parallel.h"

namespace gipo {
namespace {

[[noreturn]] void outside(const char* op, const char* what, int64_t row, int64_t value, int64_t limit) {
    throw std::out_of_range(std::string(op) + ": " + what + "[" + std::to_string(row) + "] = " + std::to_string(value) +
                            " is outside [0, " + std::to_string(limit) + ").");
}

void check_slot(const char* op, const PagedCache& cache, int64_t row, int64_t slot) {
    if (slot < 0 || slot >= cache.slots) outside(op, "slot_N", row, slot, cache.slots);
}

void check_page(const char* op, const PagedCache& cache, int64_t slot, int64_t number) {
    const int64_t page = cache.table[slot * cache.table_stride + number];
    if (page >= 0 && page < cache.pages) return;
    throw std::out_of_range(std::string(op) + ": page_table_SP[" + std::to_string(slot) + ", " +
                            std::to_string(number) + "] = " + std::to_string(page) + " is no page of the " +
                            std::to_string(cache.pages) + " in the pools, but a position in it is needed: give the " +
                            "slot a page first.");
}

}  // namespace

void rotate_and_append_cpu(const NewTokens& in, const PagedCache& cache, int threads) {
    const char* const op = "rotate_and_append";
    const int64_t room = cache.slot_pages * kPage, positions = in.positions < room ? in.positions : room;
    for (int64_t n = 0; n < in.rows; ++n) {
        if (in.position[n] == -1) continue;
        if (in.position[n] < -1 || in.position[n] >= positions) {
            outside(op, "position_N", n, in.position[n], positions);
        }
        check_slot(op, cache, n, in.slot[n]);
        check_page(op, cache, in.slot[n], in.position[n] / kPage);
    }
    const auto run = kernel_of(instruction_set().append->tokens, cache.dtype);
    parallel_rows(in.rows, cache.heads * (in.queries + 2) * cache.width, threads,
                  [&](int64_t begin, int64_t end) { run(in, cache, begin, end); });
}

void paged_attention_cpu(const QueryRows& in, const PagedCache& cache, int threads) {
    const char* const op = "paged_attention";
    const int64_t room = cache.slot_pages * kPage;
    int64_t total = 0, longest = 0;
    for (int64_t n = 0; n < in.rows; ++n) {
        const int64_t length = in.length[n];
        if (length < 0 || length > room) outside(op, "length_N", n, length, room + 1);
        if (length == 0) continue;
        check_slot(op, cache, n, in.slot[n]);
        for (int64_t page = 0; page * kPage < length; ++page) check_page(op, cache, in.slot[n], page);
        total += length;
        longest = longest < length ? length : longest;
    }
    if (in.rows == 0) return;
    const int64_t groups = in.rows * cache.heads * query_groups(in), chunks = chunks_of(longest);
    // What a query head does with a key and a value costs about as much as loading them does.
    const int64_t work = total / in.rows * (1 + in.queries) * cache.width / query_groups(in);
    const auto& kernels = *instruction_set().attention;
    if (threads == 1 || chunks <= 1 || groups >= threads * kTurns) {
        const auto run = kernel_of(kernels.whole, cache.dtype);
        return parallel_rows(groups, work, threads, [&](int64_t begin, int64_t end) { run(in, cache, begin, end); });
    }
    // Too few for all threads to be busy to the end: chunk by chunk.
    const auto reduce = kernel_of(kernels.reduce, cache.dtype);
    const auto merge = kernel_of(kernels.merge, cache.dtype);
    const std::unique_ptr<HeadParts[]> parts(new HeadParts[groups * chunks]);
    parallel_rows(groups * chunks, work / chunks, threads,
                  [&](int64_t begin, int64_t end) { reduce(in, cache, chunks, parts.get(), begin, end); });
    parallel_rows(groups, chunks * in.queries * cache.width, threads,
                  [&](int64_t begin, int64_t end) { merge(in, cache, chunks, parts.get(), begin, end); });
}

}  // namespace gipo
