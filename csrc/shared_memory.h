// Messages between the processes of one machine, through memory that all of them have mapped.
//
// A Room belongs to a group of `ranks` processes. It begins as zeros, and holds
//
//     board      [ranks]             two counters of each rank: collectives it has posted to, and has finished
//     mail       [ranks, ranks]      two counters of each pair (from, to): messages sent, and taken
//                                    beside the posted and the sent ones, the bytes of each of the last kLetters
//     buffers    [ranks, 2]          kPiece bytes: what a rank posts to a collective; even and odd ones take turns
//     letters    [ranks, ranks, kLetters]  kPiece bytes: messages on their way
//
// Collectives of a group are numbered from 1, by every rank alike; each moves at most kPiece bytes a rank, so callers
// cut longer tensors. A rank may write the data of collective n once all ranks have finished n - 2. Who waits spins for
// a moment and then sleeps on the counter (a futex), so that ranks that share a core get on with their work.
//
// Functions that wait return -1 when they are done, and else, after `milliseconds`, the rank that they still wait for:
// nothing has happened then, and the same call may be made again. Those that read what another rank has written throw
// std::runtime_error where it has another number of bytes for this collective or message. Linux only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gipo {

constexpr int64_t kPiece = 1 << 20;  // bytes
constexpr int64_t kLetters = 4;
constexpr int64_t kLine = 64;  // bytes of a cache line

enum class Reduction { kSum, kMax, kMin };
enum class Element { kFloat32, kFloat64, kInt32, kInt64 };

struct Room {
    char* base;     // page-aligned
    int64_t ranks;  // of the group
    int64_t rank;   // the caller's
    int64_t spins;  // looks at a counter before the caller sleeps
};

// Bytes of a room; pages are touched as they are used.
int64_t room_bytes(int64_t ranks);

// Put `pieces` parts of `bytes`, `stride` bytes apart at `data`, side by side into the caller's buffer of collective
// `number`. Waits for ranks that have not finished the one before the last.
int64_t post(const Room& room, uint32_t number, const char* data, int64_t bytes, int64_t stride, int64_t pieces,
             int64_t milliseconds);

// out[count] = the reduction over all ranks of what stands `offset` bytes from the start of their buffers, added in
// the order of the ranks.
int64_t reduce(const Room& room, uint32_t number, char* out, int64_t count, int64_t offset, Element element,
               Reduction reduction, int64_t milliseconds);

// out[bytes] = what rank `from` has posted.
int64_t take(const Room& room, uint32_t number, int64_t from, char* out, int64_t bytes, int64_t milliseconds);

// The caller is done with what the others have posted to collective `number`.
void finish(const Room& room, uint32_t number);

// Message `number` (from 1) to rank `to`, at most kPiece bytes. Waits where kLetters are on their way.
int64_t send(const Room& room, uint32_t number, int64_t to, const char* data, int64_t bytes, int64_t milliseconds);

// Message `number` of rank `from`.
int64_t receive(const Room& room, uint32_t number, int64_t from, char* out, int64_t bytes, int64_t milliseconds);

}  // namespace gipo
