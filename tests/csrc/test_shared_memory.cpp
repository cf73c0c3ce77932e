// A room among threads that play ranks, under the thread sanitizer (test_csrc.py builds it so): collectives of changing
// kinds and sizes, messages in both directions, and a rank that does not come.
#include "shared_memory.h"

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <thread>
#include <vector>

using namespace gipo;

namespace {

constexpr int64_t kRanks = 3;
constexpr uint32_t kTurns = 600;

void require(bool holds, const char* what) {
    if (holds) return;
    std::printf("%s\n", what);
    std::exit(1);
}

template <class Call>
void refused(const Call& call) {
    try {
        call();
    } catch (const std::runtime_error&) {
        return;
    }
    require(false, "a size that differs is refused");
}

char* at(std::vector<int64_t>& values) {
    return reinterpret_cast<char*>(values.data());
}

void play(char* base, int64_t rank) {
    const Room room{base, kRanks, rank, rank * 50};  // the first sleeps at once
    uint32_t number = 0;
    for (uint32_t turn = 1; turn <= kTurns; ++turn) {
        const int64_t count = turn % 7 ? turn % 50 + 1 : 3000, bytes = count * 8;
        std::vector<int64_t> own(count, rank + turn), out(count);

        require(post(room, ++number, at(own), bytes, 0, 1, 10000) < 0, "post");
        require(reduce(room, number, at(out), count, 0, Element::kInt64, Reduction::kSum, 10000) < 0, "reduce");
        finish(room, number);
        require(out[0] == 3 * turn + 3 && out[count - 1] == out[0], "the sum is that of all ranks");

        const int64_t root = turn % kRanks;
        ++number;
        if (rank == root) require(post(room, number, at(own), bytes, 0, 1, 10000) < 0, "post");
        require(take(room, number, root, at(out), bytes, 10000) < 0, "take");
        finish(room, number);
        require(out[count - 1] == root + turn, "a broadcast brings what its root has");

        const int64_t next = (rank + 1) % kRanks, previous = (rank + kRanks - 1) % kRanks;
        require(send(room, turn, next, at(own), bytes, 10000) < 0, "send");
        if (turn % kLetters) continue;  // several are on their way
        for (uint32_t letter = turn - kLetters + 1; letter <= turn; ++letter) {
            const int64_t size = letter % 7 ? letter % 50 + 1 : 3000;
            std::vector<int64_t> arrived(size);
            require(receive(room, letter, previous, at(arrived), size * 8, 10000) < 0, "receive");
            require(arrived[size - 1] == previous + letter, "messages arrive in their order");
        }
    }
    if (rank) return;
    std::vector<int64_t> own(1), out(1);
    require(post(room, ++number, at(own), 8, 0, 1, 10000) < 0, "post");
    require(reduce(room, number, at(out), 1, 0, Element::kInt64, Reduction::kSum, 5) == 1, "who is late is named");
    require(receive(room, kTurns + 1, 2, at(out), 8, 5) == 2, "who is late is named");
    refused([&] { take(room, number, rank, at(out), 16, 5); });
    require(send(room, 1, rank, at(own), 8, 5) < 0, "send");
    refused([&] { receive(room, 1, rank, at(out), 4, 5); });
    require(receive(room, 1, rank, at(out), 8, 5) < 0, "what was refused is still there");
}

}  // namespace

int main() {
    void* base = std::aligned_alloc(4096, room_bytes(kRanks));
    for (int64_t i = 0; i < 4096 * 8; ++i) static_cast<char*>(base)[i] = 0;
    std::vector<std::thread> ranks;
    for (int64_t rank = 0; rank < kRanks; ++rank) ranks.emplace_back(play, static_cast<char*>(base), rank);
    for (auto& rank : ranks) rank.join();
    std::free(base);
    std::printf("%u turns\n", kTurns);
}
