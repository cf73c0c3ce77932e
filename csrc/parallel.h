// Rows over threads. Rows are independent and each is summed in one fixed order, so results do not depend on the number
// of threads. Plain std::thread rather than OpenMP: a process that is forked afterwards keeps working, and no second
// OpenMP runtime spins beside torch's.
#pragma once

#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace gipo {

constexpr int64_t kWorkOfAThread = 32768;  // elements; below, starting a thread costs more than it saves

// Calls run(begin, end) on contiguous ranges that cover [0, rows). `row_work`: elements of a row. `run` must not throw.
template <class Run>
void parallel_rows(int64_t rows, int64_t row_work, int threads, const Run& run) {
    int64_t parts = rows * (row_work > 0 ? row_work : 1) / kWorkOfAThread;
    if (parts > threads) parts = threads;
    if (parts > rows) parts = rows;
    if (parts < 1) parts = 1;
    const auto begin = [&](int64_t part) { return rows / parts * part + (part < rows % parts ? part : rows % parts); };

    std::vector<std::thread> helpers;
    helpers.reserve(parts - 1);
    int64_t part = 1;
    try {
        for (; part < parts; ++part)
            helpers.emplace_back([&run, from = begin(part), to = begin(part + 1)] { run(from, to); });
    } catch (const std::system_error&) {
        // No more threads to be had: this one does the rest.
        run(begin(part), rows);
    }
    run(begin(0), begin(1));
    for (std::thread& helper : helpers) helper.join();
}

}  // namespace gipo
