#include "shared_memory.h"

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <cstring>
#include <ctime>
#include <stdexcept>
#include <string>

namespace gipo {
namespace {

using Clock = std::chrono::steady_clock;

// Counts up, wraps around; on a cache line of its own, with the bytes of the last things that it counted.
struct alignas(kLine) Counter {
    std::atomic<uint32_t> value;
    std::atomic<uint32_t> sleepers;
    int64_t bytes[kLetters];  // written before `value` says so, and read after it

    bool reached(uint32_t wanted) const { return int32_t(value.load() - wanted) >= 0; }

    void publish(uint32_t now) {
        value.store(now);
        // Either this sees the sleeper, or the sleeper, which announces itself first, sees the new value.
        if (sleepers.load()) syscall(SYS_futex, &value, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
    }

    bool wait(uint32_t wanted, int64_t spins, Clock::time_point until) {
        for (int64_t look = 0; look < spins; ++look) {
            if (reached(wanted)) return true;
            pause();
        }
        sleepers.fetch_add(1);
        bool done = reached(wanted);
        for (uint32_t seen = value.load(); !done; done = reached(wanted), seen = value.load()) {
            if (int32_t(seen - wanted) >= 0) continue;
            const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(until - Clock::now()).count();
            if (left <= 0) break;
            const timespec time{time_t(left / 1000000000), long(left % 1000000000)};
            syscall(SYS_futex, &value, FUTEX_WAIT, seen, &time, nullptr, 0);
        }
        sleepers.fetch_sub(1);
        return done;
    }

  private:
    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }
};
static_assert(sizeof(Counter) == kLine && std::atomic<uint32_t>::is_always_lock_free);

constexpr int64_t kPage = 4096;

int64_t counters(int64_t ranks) {
    return 2 * ranks + 2 * ranks * ranks;
}

int64_t counter_bytes(int64_t ranks) {
    return (counters(ranks) * kLine + kPage - 1) / kPage * kPage;
}

Counter& counter(const Room& room, int64_t index) {
    return reinterpret_cast<Counter*>(room.base)[index];
}
Counter& posted(const Room& room, int64_t rank) {
    return counter(room, 2 * rank);
}
Counter& finished(const Room& room, int64_t rank) {
    return counter(room, 2 * rank + 1);
}
Counter& sent(const Room& room, int64_t from, int64_t to) {
    return counter(room, 2 * (room.ranks + from * room.ranks + to));
}
Counter& taken(const Room& room, int64_t from, int64_t to) {
    return counter(room, 2 * (room.ranks + from * room.ranks + to) + 1);
}

char* buffer(const Room& room, int64_t rank, uint32_t number) {
    return room.base + counter_bytes(room.ranks) + (2 * rank + number % 2) * kPiece;
}
char* letter(const Room& room, int64_t from, int64_t to, uint32_t number) {
    const int64_t pair = from * room.ranks + to;
    return buffer(room, room.ranks, 0) + (kLetters * pair + number % kLetters) * kPiece;
}

Clock::time_point after(int64_t milliseconds) {
    return Clock::now() + std::chrono::milliseconds(milliseconds);
}

int64_t& bytes_of(Counter& counter, uint32_t number) {
    return counter.bytes[number % kLetters];
}

// Throws where rank `from` has brought other than `bytes` to collective or message `number`: what follows copies.
void check_bytes(Counter& counter, uint32_t number, int64_t from, int64_t bytes) {
    const int64_t theirs = bytes_of(counter, number);
    if (theirs == bytes) return;
    throw std::runtime_error("Rank " + std::to_string(from) + " of a process group has " + std::to_string(theirs) +
                             " bytes for a message or a collective where this rank has " + std::to_string(bytes) +
                             ": the ranks do not run the same program, or disagree about a shape. Start all of them "
                             "with the same version and configuration; if they have it, please report this.");
}

template <class T>
T joined(T a, T b, Reduction reduction) {
    if (reduction == Reduction::kSum) return a + b;
    return (reduction == Reduction::kMax) == (a < b) ? b : a;
}

template <class T>
void reduce_as(const Room& room, uint32_t number, T* out, int64_t count, int64_t offset, Reduction reduction) {
    const auto of = [&](int64_t rank) { return reinterpret_cast<const T*>(buffer(room, rank, number) + offset); };
    const T* first = of(0);
    const T* second = of(1);
    if (reduction == Reduction::kSum) {
        for (int64_t i = 0; i < count; ++i) out[i] = first[i] + second[i];
    } else {
        for (int64_t i = 0; i < count; ++i) out[i] = joined(first[i], second[i], reduction);
    }
    for (int64_t rank = 2; rank < room.ranks; ++rank) {
        const T* next = of(rank);
        for (int64_t i = 0; i < count; ++i) out[i] = joined(out[i], next[i], reduction);
    }
}

}  // namespace

int64_t room_bytes(int64_t ranks) {
    return counter_bytes(ranks) + (2 * ranks + kLetters * ranks * ranks) * kPiece;
}

int64_t post(const Room& room, uint32_t number, const char* data, int64_t bytes, int64_t stride, int64_t pieces,
             int64_t milliseconds) {
    const auto until = after(milliseconds);
    for (int64_t rank = 0; rank < room.ranks; ++rank) {
        if (!finished(room, rank).wait(number - 2, room.spins, until)) return rank;
    }
    char* place = buffer(room, room.rank, number);
    for (int64_t piece = 0; piece < pieces && bytes; ++piece) {
        std::memcpy(place + piece * bytes, data + piece * stride, bytes);
    }
    bytes_of(posted(room, room.rank), number) = pieces * bytes;
    posted(room, room.rank).publish(number);
    return -1;
}

int64_t reduce(const Room& room, uint32_t number, char* out, int64_t count, int64_t offset, Element element,
               Reduction reduction, int64_t milliseconds) {
    const auto until = after(milliseconds);
    for (int64_t rank = 0; rank < room.ranks; ++rank) {
        if (!posted(room, rank).wait(number, room.spins, until)) return rank;
        check_bytes(posted(room, rank), number, rank, bytes_of(posted(room, room.rank), number));
    }
    const auto run = [&](auto* typed) { reduce_as(room, number, typed, count, offset, reduction); };
    if (element == Element::kFloat32) run(reinterpret_cast<float*>(out));
    if (element == Element::kFloat64) run(reinterpret_cast<double*>(out));
    if (element == Element::kInt32) run(reinterpret_cast<int32_t*>(out));
    if (element == Element::kInt64) run(reinterpret_cast<int64_t*>(out));
    return -1;
}

int64_t take(const Room& room, uint32_t number, int64_t from, char* out, int64_t bytes, int64_t milliseconds) {
    if (!posted(room, from).wait(number, room.spins, after(milliseconds))) return from;
    check_bytes(posted(room, from), number, from, bytes);
    if (bytes) std::memcpy(out, buffer(room, from, number), bytes);
    return -1;
}

void finish(const Room& room, uint32_t number) {
    finished(room, room.rank).publish(number);
}

int64_t send(const Room& room, uint32_t number, int64_t to, const char* data, int64_t bytes, int64_t milliseconds) {
    const auto until = after(milliseconds);
    if (!taken(room, room.rank, to).wait(number - kLetters, room.spins, until)) return to;
    if (bytes) std::memcpy(letter(room, room.rank, to, number), data, bytes);
    bytes_of(sent(room, room.rank, to), number) = bytes;
    sent(room, room.rank, to).publish(number);
    return -1;
}

int64_t receive(const Room& room, uint32_t number, int64_t from, char* out, int64_t bytes, int64_t milliseconds) {
    if (!sent(room, from, room.rank).wait(number, room.spins, after(milliseconds))) return from;
    check_bytes(sent(room, from, room.rank), number, from, bytes);
    if (bytes) std::memcpy(out, letter(room, from, room.rank, number), bytes);
    taken(room, from, room.rank).publish(number);
    return -1;
}

}  // namespace gipo
#endif
