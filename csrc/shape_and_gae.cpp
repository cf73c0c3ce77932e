// Build and test: pip install -e . && pytest tests/ops/test_shape_and_gae.py
//
// Op C on the CPU, over a range of sequences; compiled for every instruction set (cpu.h). 12 bytes read and 12 written
// a float32 token.
//
// The recursion A_t = delta_t + c A_(t+1) runs over sixteen tokens at a time: four steps of doubling distance give what
// the tokens of a run owe to each other, and one more adds what they owe to the run after them.
//
// Order of reduction: the advantages as said; the sums over a row in 16 interleaved lanes inside blocks of 512 tokens,
// lanes in order in double, blocks from the last to the first in double; the totals in row order in double (cpu.cpp).
#include "cpu.h"
#include "lanes.h"

namespace gipo {
namespace GIPO_ISA {
namespace {

constexpr int64_t kBlock = 512;

// What is the same for all tokens.
template <class A>
struct Scan {
    Lanes<A> decay[4], distance;  // c, c^2, c^4, c^8; c^16, c^15, ..., c^1: how far the run after is from each token

    explicit GIPO_HD Scan(double c) {
        double power = c;
        for (Lanes<A>& lanes : decay) {
            lanes = Lanes<A>(static_cast<A>(power));
            power *= power;
        }
        power = 1;
        for (int k = kLanes - 1; k >= 0; --k) distance.set(k, static_cast<A>(power *= c));
    }

    // The advantages of sixteen tokens, after which that of the next is `later`.
    GIPO_HD Lanes<A> operator()(Lanes<A> delta, A later) const {
        delta = fused(decay[0], shifted_down<1>(delta), delta);
        delta = fused(decay[1], shifted_down<2>(delta), delta);
        delta = fused(decay[2], shifted_down<4>(delta), delta);
        delta = fused(decay[3], shifted_down<8>(delta), delta);
        return fused(distance, Lanes<A>(later), delta);
    }
};

template <class T, class A = Accumulator<T>>
GIPO_HD void shape_row(const RewardRows& in, const ShapedRows& out, const Scan<A>& scan, int64_t i) {
    const int64_t length = bounded_length(in.length[i], in.time), start = i * in.time;
    const T* behaviour = static_cast<const T*>(in.behaviour) + start;
    const T* reference = static_cast<const T*>(in.reference) + start;
    const T* values = static_cast<const T*>(in.values) + start;
    A* rewards = static_cast<A*>(out.rewards) + start;
    A* advantages = static_cast<A*>(out.advantages) + start;
    A* returns = static_cast<A*>(out.returns) + start;
    const A reward = static_cast<const A*>(in.reward)[i];
    const Lanes<A> kl_weight(static_cast<const A*>(in.kl_weight)[i]), gamma(static_cast<A>(in.gamma));
    const T zero = Narrow<T>::from(A(0));

    for (int64_t t = length; t < in.time; ++t) rewards[t] = advantages[t] = returns[t] = 0;
    A later = 0;
    double kl_total = 0, total = 0, squares_total = 0;
    // Runs of sixteen from the front; the last of them, which is the first to be worked on, may have fewer.
    for (int64_t end = length, begin; end > 0; end = begin) {
        begin = (end - 1) / kBlock * kBlock;
        Lanes<A> kls(A(0)), sums(A(0)), squares(A(0));
        for (int64_t t = (end - 1) / kLanes * kLanes; t >= begin; t -= kLanes) {
            const int64_t count = length - t;  // tokens from here to the end of the response
            const bool whole = count >= kLanes, last = count <= kLanes;
            const auto load = [&](const T* from) GIPO_INLINE {
                return whole ? load_lanes(from + t) : load_lanes(from + t, count, zero);
            };
            const Lanes<A> value = load(values);
            const Lanes<A> kl = kl_estimate(load(behaviour) - load(reference), in.estimator);
            Lanes<A> next = shifted_down<1>(value), shaped = kl_penalty(kl, kl_weight);
            if (last) {
                shaped.set(count - 1, reward + shaped.lane(count - 1));
            } else {
                next.set(kLanes - 1, widen(values[t + kLanes]));
            }
            const Lanes<A> found = scan(temporal_difference(shaped, value, next, gamma), later);
            later = found.lane(0);
            const auto store = [&](A* to, const Lanes<A>& lanes) GIPO_INLINE {
                if (whole) return store_lanes(to + t, lanes);
                store_lanes(to + t, count, lanes);
            };
            store(rewards, shaped);
            store(advantages, found);
            store(returns, found + value);
            kls += kl;
            sums += found;
            squares = fused(found, found, squares);
        }
        for (int k = 0; k < kLanes; ++k) {
            kl_total += static_cast<double>(kls.lane(k));
            total += static_cast<double>(sums.lane(k));
            squares_total += static_cast<double>(squares.lane(k));
        }
    }
    A* row_sums = static_cast<A*>(out.row_sums);
    static_cast<A*>(out.kl)[i] = static_cast<A>(kl_total);
    row_sums[kTokenCount * in.batch + i] = static_cast<A>(length);
    row_sums[kAdvantageSum * in.batch + i] = static_cast<A>(total);
    row_sums[kAdvantageSquares * in.batch + i] = static_cast<A>(squares_total);
}

template <class T>
void shape_rows(const RewardRows& in, const ShapedRows& out, int64_t begin, int64_t end) {
    const Scan<Accumulator<T>> scan(in.gamma * in.lambda);
    for (int64_t i = begin; i < end; ++i) shape_row<T>(in, out, scan, i);
}

}  // namespace

extern const ShapingRowKernels shaping_rows = {
    {shape_rows<float>, shape_rows<BFloat16>, shape_rows<Float16>, shape_rows<double>},
};

}  // namespace GIPO_ISA
}  // namespace gipo
