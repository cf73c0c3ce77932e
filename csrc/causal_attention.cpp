// Causal attention of whole sequences on the CPU, a sequence and key head at a time, straight from the output of the
// QKV projection: rotation, products, softmax, weighted sum, and the gradient of them all. Its keys lie transposed in a
// room of their own, so that sixteen scores are the lanes of a register; a query's scores are all in memory before its
// softmax, which short sequences allow. Nothing is kept for the backward pass but two numbers a query.
//
// Order of reduction: each product over the head dimension, each sum over positions and, for the gradients of keys and
// values, over queries and query heads one after the other; maxima and sums of weights in sixteen lanes, then lanes 8,
// 4, 2 and 1 apart. What a position sees of those after it is a weight of exactly 0, so that a row's bits depend
// neither on other rows nor on how long it is padded. AVX2 and AVX-512 give the same bits.
#include "causal_attention.h"

#include "formulas.h"
#include "rotate_and_append.h"
#include "row_lanes.h"

namespace gipo {
namespace GIPO_ISA {
namespace {

// Sixteens of results of each row of a tile that are held in registers.
constexpr int kHeld = GIPO_VECTOR_BYTES == 64 ? 2 : 1;

template <int number>
struct Count {
    static constexpr int value = number;
};

// Calls visit(Count, first) until `count` things had their turn, `most` of them at a time and then one.
template <int most, class Visit>
GIPO_HD void in_turn(int64_t count, const Visit& visit) {
    int64_t k = 0;
    for (; k + most <= count; k += most) visit(Count<most>(), k);
    for (; k < count; ++k) visit(Count<1>(), k);
}

// One head's share of a row of queries, keys or values, and where the next position's is.
struct Rows {
    const float* first;
    int64_t stride;
};

// A sequence and key head, and the sizes of its room: rows of `padded` numbers, transposed rows of `positions`.
struct Head {
    const Sequences& in;
    int64_t number, padded, positions;

    GIPO_HD Head(const Sequences& in, int64_t number)
        : in(in), number(number), padded(rounded_up(in.width)), positions(rounded_up(in.length)) {}

    // Offset of part `part` (queries, key, value) at position 0, of rows that hold `parts` of each key head.
    GIPO_HD int64_t place(int64_t part, int64_t parts) const {
        const int64_t row = number / in.heads * in.next_sequence;
        return ((row * in.heads + number % in.heads) * parts + part) * in.width;
    }
    GIPO_HD int64_t stride(int64_t parts) const { return in.next_position * in.heads * parts * in.width; }
    GIPO_HD Rows part(const float* all, int64_t part, int64_t parts) const {
        return {all + place(part, parts), stride(parts)};
    }
    GIPO_HD float* statistics(int64_t query) const { return in.statistics + (number * in.queries + query) * in.length; }
    GIPO_HD int64_t statistics_apart() const { return in.batch * in.heads * in.queries * in.length; }
};

// Rows one behind the other, with zeros up to `padded`.
GIPO_HD void copy(const Head& head, const Rows& from, float* to) {
    for (int64_t t = 0; t < head.in.length; ++t) {
        for (int64_t d = 0; d < head.in.width; d += kLanes) {
            store_lanes(to + t * head.padded + d, numbers_at(from.first + t * from.stride, d, head.in.width));
        }
    }
}

// A row turned by the angle of position t, or back (direction -1), times a factor.
GIPO_HD void turn(const Sequences& in, int64_t t, float direction, float factor, const float* from, float* to) {
    const int64_t half = in.width / 2;
    const float *cos = in.cos + t * in.turn_stride, *sin = in.sin + t * in.turn_stride;
    for (int64_t d = 0; d < half; d += kLanes) {
        const auto pair = rotated(numbers_at(from, d, half), numbers_at(from + half, d, half), numbers_at(cos, d, half),
                                  numbers_at(sin, d, half) * in_all_lanes(direction));
        put_numbers(to, d, half, pair.first * in_all_lanes(factor));
        put_numbers(to + half, d, half, pair.second * in_all_lanes(factor));
    }
}

GIPO_HD void turn_all(const Head& head, const Rows& from, float factor, float* to) {
    for (int64_t t = 0; t < head.in.length; ++t) {
        turn(head.in, t, 1.0f, factor, from.first + t * from.stride, to + t * head.padded);
    }
}

// [L, padded] -> [padded, positions], zeros behind the last position.
GIPO_HD void transpose_all(const Head& head, const float* from, float* to) {
    Floats rows[kLanes];
    for (int64_t t = 0; t < head.positions; t += kLanes) {
        for (int64_t d = 0; d < head.padded; d += kLanes) {
            for (int k = 0; k < kLanes; ++k) {
                rows[k] = t + k < head.in.length ? load_lanes(from + (t + k) * head.padded + d) : Floats(0.0f);
            }
            transpose(rows);
            for (int k = 0; k < kLanes; ++k) store_lanes(to + (d + k) * head.positions + t, rows[k]);
        }
    }
}

// Products of `rows` rows with the first `columns` columns of [width, positions], a multiple of sixteen.
template <int rows>
GIPO_HD void products(const Head& head, const float* left, const float* right, int64_t columns, float* out) {
    in_turn<kHeld>(columns / kLanes, [&](auto held, int64_t first) GIPO_INLINE {
        constexpr int count = decltype(held)::value;
        Floats sums[rows][count];
        for (auto& row : sums) {
            for (auto& sum : row) sum = Floats(0.0f);
        }
        for (int64_t d = 0; d < head.in.width; ++d) {
            Floats numbers[count];
            for (int b = 0; b < count; ++b) {
                numbers[b] = load_lanes(right + d * head.positions + (first + b) * kLanes);
            }
            for (int r = 0; r < rows; ++r) {
                const Floats factor = in_all_lanes(left[r * head.padded + d]);
                for (int b = 0; b < count; ++b) sums[r][b] = fused(factor, numbers[b], sums[r][b]);
            }
        }
        for (int r = 0; r < rows; ++r) {
            for (int b = 0; b < count; ++b) {
                store_lanes(out + r * head.positions + (first + b) * kLanes, sums[r][b]);
            }
        }
    });
}

// Adds rows `begin` to `end` of [L, padded], weighted, to `rows` sums [rows, padded]. Weights of a sum are `apart` from
// those of the next one, and `step` from each other.
template <int rows>
GIPO_HD void add_weighted(const Head& head, const float* weights, int64_t apart, int64_t step, const float* from,
                          int64_t begin, int64_t end, float* to) {
    in_turn<kHeld>(head.padded / kLanes, [&](auto held, int64_t first) GIPO_INLINE {
        constexpr int count = decltype(held)::value;
        Floats sums[rows][count];
        for (int r = 0; r < rows; ++r) {
            for (int b = 0; b < count; ++b) sums[r][b] = load_lanes(to + r * head.padded + (first + b) * kLanes);
        }
        for (int64_t t = begin; t < end; ++t) {
            Floats numbers[count];
            for (int b = 0; b < count; ++b) numbers[b] = load_lanes(from + t * head.padded + (first + b) * kLanes);
            for (int r = 0; r < rows; ++r) {
                const Floats weight = in_all_lanes(weights[r * apart + t * step]);
                for (int b = 0; b < count; ++b) sums[r][b] = fused(weight, numbers[b], sums[r][b]);
            }
        }
        for (int r = 0; r < rows; ++r) {
            for (int b = 0; b < count; ++b) store_lanes(to + r * head.padded + (first + b) * kLanes, sums[r][b]);
        }
    });
}

// The scores of position t are those of positions 0 to t; those after them become -Inf.
GIPO_HD Floats seen_scores(const float* scores, int64_t first, int64_t t) {
    Floats number;
    for (int k = 0; k < kLanes; ++k) number.set(k, static_cast<float>(k));
    const Floats score = load_lanes(scores + first);
    if (first + kLanes <= t + 1) return score;
    return select(number < Floats(static_cast<float>(t + 1 - first)), score, Floats(minus_infinity<float>()));
}

GIPO_HD Floats weight_of(const Floats& score, float maximum) {
    return power_of_two(exponent_of(score, Floats(maximum), Floats(1.0f)));
}

// Of position t: weights 2^(score - maximum) in place of the first `columns` scores, and what they are divided by.
GIPO_HD void softmax(float* scores, int64_t columns, int64_t t, float& maximum, float& inverse) {
    Floats highest(minus_infinity<float>()), sums(0.0f);
    for (int64_t c = 0; c < columns; c += kLanes) highest = larger(seen_scores(scores, c, t), highest);
    maximum = across(highest, [](const Floats& a, const Floats& b) GIPO_INLINE { return larger(a, b); });
    for (int64_t c = 0; c < columns; c += kLanes) {
        const Floats weight = weight_of(seen_scores(scores, c, t), maximum);
        store_lanes(scores + c, weight);
        sums += weight;
    }
    inverse = 1.0f / total(sums);
}

// ------------------------------------------------------------------------------------------------------------ forward
void attend(const Sequences& in, float* seen, float* room, int64_t begin, int64_t end) {
    for (int64_t number = begin; number < end; ++number) {
        const Head head(in, number);
        const int64_t parts = in.queries + 2, size = in.length * head.padded;
        float *const query = room, *const value = query + size, *const keys = value + size;
        float *const scores = keys + head.padded * head.positions, *const sums = scores + kTile * head.positions;
        turn_all(head, head.part(in.qkv, in.queries, parts), 1.0f, query);
        transpose_all(head, query, keys);
        copy(head, head.part(in.qkv, in.queries + 1, parts), value);
        for (int64_t j = 0; j < in.queries; ++j) {
            turn_all(head, head.part(in.qkv, j, parts), static_cast<float>(in.scale * kLog2E), query);
            float *const maximum = head.statistics(j), *const inverse = maximum + head.statistics_apart();
            float* const out = seen + head.place(j, in.queries);
            in_turn<kTile>(in.length, [&](auto tile, int64_t t) GIPO_INLINE {
                constexpr int rows = decltype(tile)::value;
                const int64_t columns = rounded_up(t + rows);
                products<rows>(head, query + t * head.padded, keys, columns, scores);
                for (int r = 0; r < rows; ++r) {
                    softmax(scores + r * head.positions, columns, t + r, maximum[t + r], inverse[t + r]);
                }
                memset(sums, 0, rows * head.padded * sizeof(float));
                add_weighted<rows>(head, scores, head.positions, 1, value, 0, t + rows, sums);
                for (int r = 0; r < rows; ++r) {
                    for (int64_t d = 0; d < in.width; d += kLanes) {
                        put_numbers(out + (t + r) * head.stride(in.queries), d, in.width,
                                    load_lanes(sums + r * head.padded + d) * in_all_lanes(inverse[t + r]));
                    }
                }
            });
        }
    }
}

// ----------------------------------------------------------------------------------------------------------- backward
// Of position t: the weights, divided, in place of its scores, and the gradients of the exponents, of which a unit is
// one of the natural exponential, in place of those of the weights.
GIPO_HD void softmax_gradient(float* scores, float* of_weights, int64_t columns, int64_t t, float maximum,
                              float inverse) {
    Floats sums(0.0f);
    for (int64_t c = 0; c < columns; c += kLanes) {
        const Floats weight = weight_of(seen_scores(scores, c, t), maximum) * in_all_lanes(inverse);
        store_lanes(scores + c, weight);
        sums = fused(weight, load_lanes(of_weights + c), sums);
    }
    const Floats mean = in_all_lanes(total(sums));
    for (int64_t c = 0; c < columns; c += kLanes) {
        store_lanes(of_weights + c, load_lanes(scores + c) * (load_lanes(of_weights + c) - mean));
    }
}

void attend_gradient(const Sequences& in, const SeenGradient& gradient, float* room, int64_t begin, int64_t end) {
    for (int64_t number = begin; number < end; ++number) {
        const Head head(in, number);
        const int64_t parts = in.queries + 2, size = in.length * head.padded, square = in.length * head.positions;
        float *const query = room, *const key = query + size, *const of_seen = key + size;
        float *const of_key = of_seen + size, *const of_value = of_key + size;
        float *const keys = of_value + size, *const values = keys + head.padded * head.positions;
        float *const weights = values + head.padded * head.positions, *const of_scores = weights + square;
        float* const sums = of_scores + square;
        turn_all(head, head.part(in.qkv, in.queries, parts), 1.0f, key);
        transpose_all(head, key, keys);
        copy(head, head.part(in.qkv, in.queries + 1, parts), query);
        transpose_all(head, query, values);
        memset(of_key, 0, size * sizeof(float));
        memset(of_value, 0, size * sizeof(float));
        float* const out = gradient.qkv + head.place(0, parts);
        for (int64_t j = 0; j < in.queries; ++j) {
            turn_all(head, head.part(in.qkv, j, parts), static_cast<float>(in.scale * kLog2E), query);
            copy(head, head.part(gradient.seen, j, in.queries), of_seen);
            const float *const maximum = head.statistics(j), *const inverse = maximum + head.statistics_apart();
            in_turn<kTile>(in.length, [&](auto tile, int64_t t) GIPO_INLINE {
                constexpr int rows = decltype(tile)::value;
                const int64_t columns = rounded_up(t + rows);
                float *const weight = weights + t * head.positions, *const of_score = of_scores + t * head.positions;
                products<rows>(head, query + t * head.padded, keys, columns, weight);
                products<rows>(head, of_seen + t * head.padded, values, columns, of_score);
                for (int r = 0; r < rows; ++r) {
                    softmax_gradient(weight + r * head.positions, of_score + r * head.positions, columns, t + r,
                                     maximum[t + r], inverse[t + r]);
                }
                memset(sums, 0, rows * head.padded * sizeof(float));
                add_weighted<rows>(head, of_score, head.positions, 1, key, 0, t + rows, sums);
                for (int r = 0; r < rows; ++r) {
                    turn(in, t + r, -1.0f, static_cast<float>(in.scale), sums + r * head.padded,
                         out + (t + r) * head.stride(parts) + j * in.width);
                }
            });
            // Tiles of queries begin where those of keys do: what a query of an earlier tile does not see is not there.
            in_turn<kTile>(in.length, [&](auto tile, int64_t t) GIPO_INLINE {
                constexpr int rows = decltype(tile)::value;
                add_weighted<rows>(head, of_scores + t, 1, head.positions, query, t, in.length,
                                   of_key + t * head.padded);
                add_weighted<rows>(head, weights + t, 1, head.positions, of_seen, t, in.length,
                                   of_value + t * head.padded);
            });
        }
        for (int64_t t = 0; t < in.length; ++t) {
            float* const row = out + t * head.stride(parts) + in.queries * in.width;
            // The queries were scaled for powers of two.
            turn(in, t, -1.0f, static_cast<float>(kLn2), of_key + t * head.padded, row);
            for (int64_t d = 0; d < in.width; d += kLanes) {
                put_numbers(row + in.width, d, in.width, load_lanes(of_value + t * head.padded + d));
            }
        }
    }
}

}  // namespace

extern const SequenceKernels sequences = {attend, attend_gradient};

}  // namespace GIPO_ISA
}  // namespace gipo
