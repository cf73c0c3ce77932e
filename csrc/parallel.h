// Rows over threads. Rows are independent and each is summed in one fixed order, so results depend neither on the
// number of threads nor on which of them takes which rows.
//
// The threads are those of the OpenMP runtime that torch has loaded, found by name, so that there is no second one
// beside it. Where there is none, and in a forked process, which may have lost its OpenMP threads, they are our own:
// started once, and asleep a tenth of a millisecond after a kernel. All compute as the calling thread is set to
// (rounding, subnormal numbers).
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>

namespace gipo {

constexpr int64_t kWorkOfAThread = 32768;  // elements; below, waking a thread costs more than it saves
constexpr int64_t kTurns = 8;              // turns of a thread: one that comes late, or is slow, takes fewer

// Work in `turns` parts, which threads take one after the other.
class SharedWork {
  public:
    SharedWork(int64_t turns, void (*part)(const void* context, int64_t turn), const void* context)
        : turns_(turns), part_(part), context_(context) {}

    // Does parts until none is left to take, or one has thrown (std::bad_alloc of a scratch room): an exception that
    // left a helper would end the process.
    void take_part() noexcept;

    // For the caller of all, once no thread is at a part any more: throws what the first of them threw.
    void finish() const;

  private:
    std::atomic<int64_t> next_{0};
    std::atomic<bool> failed_{false};
    std::exception_ptr error_;  // of the thread that set failed_
    const int64_t turns_;
    void (*const part_)(const void*, int64_t);
    const void* const context_;
};

// Does `work` with the calling thread and others, `helpers` of our own at most; returns when it is done, and throws
// what a part of it has thrown. Where no thread can be started, ours are fewer; an OpenMP runtime ends the process
// then, as it does under torch's own operations.
void work_together(SharedWork& work, int64_t helpers);

// Calls run(begin, end) on ranges that cover [0, rows), on up to `threads` threads. `row_work`: elements of a row.
template <class Run>
void parallel_rows(int64_t rows, int64_t row_work, int threads, const Run& run) {
    int64_t parts = rows * (row_work > 0 ? row_work : 1) / kWorkOfAThread;
    if (parts > threads) parts = threads;
    if (parts > rows) parts = rows;
    if (parts <= 1) return run(0, rows);

    struct Context {
        const Run& run;
        int64_t rows, turns;
    };
    const Context context{run, rows, rows < parts * kTurns ? rows : parts * kTurns};
    SharedWork work(
        context.turns,
        [](const void* given, int64_t turn) {
            const auto& [run, rows, turns] = *static_cast<const Context*>(given);
            const auto begin = [rows = rows, turns = turns](int64_t k) {
                return rows / turns * k + (k < rows % turns ? k : rows % turns);
            };
            run(begin(turn), begin(turn + 1));
        },
        &context);
    work_together(work, parts - 1);
}

}  // namespace gipo
