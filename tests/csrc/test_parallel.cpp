// What a part of shared work throws on any thread reaches the caller, and the next work is done as ever: with helpers
// of our own, and with OpenMP's where the program has them (test_csrc.py builds both).
#include "parallel.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

using namespace gipo;

namespace {

constexpr int64_t kRows = 64;

void require(bool holds, const char* what) {
    if (holds) return;
    std::printf("%s\n", what);
    std::exit(1);
}

// Throws where a helper is at work, or where the caller is; the other waits for that.
bool reaches_the_caller(bool from_helper) {
    const auto caller = std::this_thread::get_id();
    std::atomic<bool> thrown{false};
    const auto late = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    try {
        parallel_rows(kRows, kWorkOfAThread, 4, [&](int64_t, int64_t) {
            if ((std::this_thread::get_id() == caller) != from_helper) {
                thrown = true;
                throw std::bad_alloc();
            }
            while (!thrown && std::chrono::steady_clock::now() < late) std::this_thread::yield();
        });
    } catch (const std::bad_alloc&) {
        return true;
    }
    return false;
}

void every_row_is_done() {
    std::vector<int> done(kRows);
    parallel_rows(kRows, kWorkOfAThread, 4, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) ++done[row];
    });
    require(done == std::vector<int>(kRows, 1), "a row was left out, or done twice");
}

}  // namespace

int main() {
    for (int k = 0; k < 20; ++k) {
        require(reaches_the_caller(true), "what a helper threw was lost");
        every_row_is_done();
        require(reaches_the_caller(false), "what the caller threw was lost");
        every_row_is_done();
    }
    std::printf("20 rounds\n");
    return 0;
}
