// The threads that help with a kernel.
#include "parallel.h"

#include <dlfcn.h>
#include <pthread.h>

#include <cfenv>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace gipo {
namespace {

// How long a helper stays awake after it took part: waking a thread that sleeps on an idle processor may take longer
// than a small kernel does, and the backward pass of one often follows soon.
constexpr std::chrono::microseconds kAwake(100);

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Helpers {
  public:
    void run(SharedWork& work, int64_t helpers) {
        const std::unique_lock<std::mutex> alone(in_use_, std::try_to_lock);
        if (!alone.owns_lock()) return work.take_part();
        start(helpers);
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            work_ = &work;
            places_ = helpers;
            std::fegetenv(&arithmetic_);
            ++rounds_;
        }
        for (int64_t k = 0; k < helpers; ++k) wake_.notify_one();
        work.take_part();
        {
            // A helper that has not come by now has nothing left to do.
            const std::lock_guard<std::mutex> lock(mutex_);
            work_ = nullptr;
        }
        while (inside_.load(std::memory_order_acquire) > 0) std::this_thread::yield();
    }

  private:
    void start(int64_t helpers) {
        try {
            for (; started_ < helpers; ++started_) std::thread([this] { help(); }).detach();
        } catch (const std::system_error&) {
            // No more threads to be had: those there are do it.
        }
    }

    void help() {
        uint64_t seen = 0;
        for (;;) {
            SharedWork* work = nullptr;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return rounds_.load(std::memory_order_relaxed) != seen; });
                seen = rounds_.load(std::memory_order_relaxed);
                if (work_ == nullptr || places_ == 0) continue;
                work = work_;
                --places_;
                std::fesetenv(&arithmetic_);
                inside_.fetch_add(1, std::memory_order_relaxed);
            }
            work->take_part();
            inside_.fetch_sub(1, std::memory_order_release);
            const auto late = std::chrono::steady_clock::now() + kAwake;
            while (rounds_.load(std::memory_order_relaxed) == seen && std::chrono::steady_clock::now() < late) {
                pause();
            }
        }
    }

    std::mutex in_use_, mutex_;
    std::condition_variable wake_;
    std::atomic<uint64_t> rounds_{0};  // written under mutex_, as the next three are
    SharedWork* work_ = nullptr;
    int64_t places_ = 0;      // helpers that may still join the round
    std::fenv_t arithmetic_;  // the caller's rounding, and whether it flushes subnormal numbers: helpers do as it does
    std::atomic<int> inside_{0};
    int64_t started_ = 0;
};

// What compilers call for an OpenMP region, where a runtime is loaded. Its threads stay awake for a while after each of
// torch's operations, and would keep helpers of ours from a processor: with as many threads as processors ours came too
// late for a small kernel.
using OpenMpParallel = void (*)(void (*body)(void*), void* context, unsigned threads, unsigned flags);
bool forked = false;

OpenMpParallel openmp() {
    if (forked) return nullptr;
    static const auto found = reinterpret_cast<OpenMpParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return found;
}

struct Shared {
    SharedWork& work;
    std::fenv_t arithmetic;
};

void take_part_as_caller(void* given) {
    auto& [work, arithmetic] = *static_cast<Shared*>(given);
    std::fenv_t own;
    std::fegetenv(&own);
    std::fesetenv(&arithmetic);
    work.take_part();
    std::fesetenv(&own);
}

// Never destroyed: helpers sleep in it until the process ends.
Helpers* helpers_of_process = nullptr;
std::mutex making;

// A forked process has none of the threads, and perhaps a mutex that one of them held: it makes new ones. Registered
// when the module is loaded, before any fork that could matter.
[[maybe_unused]] const int registered = pthread_atfork([] { making.lock(); }, [] { making.unlock(); },
                                                       [] {
                                                           forked = true;
                                                           helpers_of_process = nullptr;
                                                           making.unlock();
                                                       });

Helpers& the_helpers() {
    const std::lock_guard<std::mutex> lock(making);
    if (helpers_of_process == nullptr) helpers_of_process = new Helpers;
    return *helpers_of_process;
}

}  // namespace

void SharedWork::take_part() noexcept {
    try {
        for (int64_t turn = next_++; turn < turns_; turn = next_++) part_(context_, turn);
    } catch (...) {
        if (!failed_.exchange(true)) error_ = std::current_exception();
        next_ = turns_;
    }
}

void SharedWork::finish() const {
    if (failed_) std::rethrow_exception(error_);
}

void work_together(SharedWork& work, int64_t helpers) {
    if (const OpenMpParallel parallel = openmp()) {
        Shared shared{work, {}};
        std::fegetenv(&shared.arithmetic);
        // 0 threads are as many as torch has: with fewer the runtime ends those left over, and starts them again for
        // torch's next operation. Who finds no turn left has nothing to do.
        parallel(take_part_as_caller, &shared, 0, 0);
    } else {
        the_helpers().run(work, helpers);
    }
    work.finish();
}

}  // namespace gipo
