// A CUDA device made of fibers, enough to run the kernels of csrc/*.cu as plain C++: blocks one after the other, the
// 256 threads of a block as fibers in turn. __syncthreads and shuffles hand over to the next thread; since all threads
// of a warp pass the same shuffles, a round of the scheduler is a barrier for them, and a thread that has come to
// __syncthreads waits for the others of the block (a thread that misses one is an error). What this shows is the
// kernels' logic: indices, order of reduction, masks, memory bounds. It knows nothing of races inside a round, of
// memory ordering or of speed.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after the other

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3(unsigned size = 1) : x(size) {}
};
struct alignas(16) uint4 {  // as on a device, which refuses to load it from anywhere else
    uint32_t x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
    return {x, y, z, w};
}
inline uint4 __ldg(const uint4* from) {
    return *from;
}
inline uint4 __ldcs(const uint4* from) {
    return *from;
}
inline void __stwb(uint4* to, const uint4& value) {
    *to = value;
}
inline void __stcs(uint4* to, const uint4& value) {
    *to = value;
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
inline cudaError_t cudaGetLastError() {
    return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) {
    return "no error";
}
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    cudaStream_t stream = nullptr;
};

inline dim3 threadIdx, blockIdx, gridDim;

namespace cuda_on_cpu {

constexpr size_t kStack = 128 * 1024;

struct Fiber {
    ucontext_t context;
    jmp_buf place;
    std::vector<char> stack = std::vector<char>(kStack);
    bool started = false, done = false, waiting = false;  // waiting: in __syncthreads
    int shuffles = 0;

    bool like(const Fiber& other) const {
        return shuffles == other.shuffles && done == other.done && waiting == other.waiting;
    }
};

inline jmp_buf scheduler;
inline std::vector<Fiber> fibers;
inline std::function<void()> body;
inline float exchanged[1024];

inline void next_thread() {
    Fiber& self = fibers[threadIdx.x];
    if (_setjmp(self.place) == 0) _longjmp(scheduler, 1);
}

inline void enter() {
    body();
    fibers[threadIdx.x].done = true;
    _longjmp(scheduler, 1);
}

// Runs a thread up to its next barrier or its end. Only its first entry goes through setcontext, which asks the
// kernel for the signal mask; jumps do not, and are 20 times faster.
inline void resume(Fiber& fiber) {
    if (_setjmp(scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    setcontext(&fiber.context);
}

inline void missed(const char* what) {
    std::fprintf(stderr, "%s\n", what);
    std::abort();
}

inline void run_block(unsigned threads) {
    fibers.resize(threads);
    for (Fiber& fiber : fibers) {
        fiber.started = fiber.done = fiber.waiting = false;
        fiber.shuffles = 0;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, enter, 0);
    }
    for (bool running = true; running;) {
        running = false;
        bool moved = false;
        for (unsigned t = 0; t < threads; ++t) {
            if (fibers[t].done || fibers[t].waiting) continue;
            threadIdx.x = t;
            resume(fibers[t]);
            moved = true;
        }
        for (unsigned t = 0; t < threads; ++t) {
            running = running || !fibers[t].done;
            if (!fibers[t].like(fibers[t / 32 * 32])) missed("threads of a warp passed different shuffles");
            if (!moved && fibers[t].done != fibers[0].done) missed("threads of a block passed different barriers");
        }
        if (moved) continue;  // else all that are left wait for one another
        for (Fiber& fiber : fibers) fiber.waiting = false;
    }
}

inline float swap_with(unsigned partner, float value) {
    exchanged[threadIdx.x] = value;
    ++fibers[threadIdx.x].shuffles;
    next_thread();
    const float received = exchanged[partner];
    next_thread();
    return received;
}

}  // namespace cuda_on_cpu

inline void __syncthreads() {
    cuda_on_cpu::fibers[threadIdx.x].waiting = true;
    cuda_on_cpu::next_thread();
}
inline unsigned long long atomicAdd(unsigned long long* to, unsigned long long value) {  // threads take turns
    const unsigned long long before = *to;
    *to += value;
    return before;
}

inline int __any_sync(unsigned, int holds) {
    for (int mask = 16; mask > 0; mask /= 2) {
        holds |= cuda_on_cpu::swap_with(threadIdx.x ^ static_cast<unsigned>(mask), holds) != 0;
    }
    return holds;
}
inline float __shfl_xor_sync(unsigned, float value, int mask) {
    return cuda_on_cpu::swap_with(threadIdx.x ^ static_cast<unsigned>(mask), value);
}
inline float __shfl_up_sync(unsigned, float value, int distance) {
    const unsigned lane = threadIdx.x % 32, step = static_cast<unsigned>(distance);
    return cuda_on_cpu::swap_with(lane < step ? threadIdx.x : threadIdx.x - step, value);
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
    gridDim = config->gridDim;
    for (unsigned block = 0; block < gridDim.x; ++block) {
        blockIdx.x = block;
        cuda_on_cpu::body = [&] { kernel(arguments...); };
        cuda_on_cpu::run_block(config->blockDim.x);
    }
    return cudaSuccess;
}
