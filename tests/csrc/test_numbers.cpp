// The numbers and lanes that every CPU kernel stands on, in whatever instruction set this is compiled for: the powers
// of two over a dense grid, sixteen lanes against one number, half precision in and out over every bit pattern.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "formulas.h"
#include "lanes.h"

using namespace gipo;

namespace {

void require(bool condition, const char* what, double value) {
    if (condition) return;
    std::fprintf(stderr, "%s: %g\n", what, value);
    std::exit(1);
}

bool same(float a, float b) {
    return bits_of(a) == bits_of(b) || (a != a && b != b);
}

// Largest relative error of `function` against `exact` over the floats of [from, to] in steps of `step` bit patterns.
template <class Function, class Exact>
double worst(float from, float to, uint32_t step, Function function, Exact exact) {
    double largest = 0;
    const bool negative = from < 0;
    uint32_t bits = bits_of(negative ? to : from);
    const uint32_t end = bits_of(negative ? from : to);
    for (; bits <= end; bits += step) {
        const float x = float_of(bits);
        const double want = exact(static_cast<double>(x));
        const double error = std::fabs(static_cast<double>(function(x)) - want) / want;
        if (!(error <= largest)) largest = error;
    }
    return largest;
}

void powers() {
    const auto two = [](float x) { return power_of_two(x); };
    const auto e = [](float x) { return exponential(x); };
    const auto exact_two = [](double x) { return std::exp2(x); };
    const auto exact_e = [](double x) { return std::exp(x); };
    double largest = worst(-126.4f, -1e-9f, 401, two, exact_two);
    require(largest < 1.3e-7, "2^x for negative x", largest);
    largest = worst(1e-9f, 127.4f, 401, two, exact_two);
    require(largest < 1.3e-7, "2^x for positive x", largest);
    largest = worst(-87.0f, -1e-9f, 401, e, exact_e);
    require(largest < 2e-7, "e^x for negative x", largest);
    largest = worst(1e-9f, 88.3f, 401, e, exact_e);
    require(largest < 2e-7, "e^x for positive x", largest);
    largest = worst(
        1e-6f, 80.0f, 401, [](float x) { return excess(x); },
        [](double x) { return x < 1e-3 ? x * x * (0.5 + x / 6 + x * x / 24) : std::expm1(x) - x; });
    require(largest < 3e-6, "e^x - 1 - x for positive x", largest);  // from 0.35 on the difference of larger numbers
    largest = worst(
        -80.0f, -1e-6f, 401, [](float x) { return excess(x); },
        [](double x) { return x > -1e-3 ? x * x * (0.5 + x / 6 + x * x / 24) : std::expm1(x) - x; });
    require(largest < 3e-6, "e^x - 1 - x for negative x", largest);
    largest = worst(
        -0.34f, -1e-6f, 41, [](float x) { return excess(x); },
        [](double x) { return x > -1e-3 ? x * x * (0.5 + x / 6 + x * x / 24) : std::expm1(x) - x; });
    require(largest < 4e-7, "e^x - 1 - x for small negative x", largest);
    largest = worst(
        1e-6f, 0.34f, 41, [](float x) { return excess(x); },
        [](double x) { return x < 1e-3 ? x * x * (0.5 + x / 6 + x * x / 24) : std::expm1(x) - x; });
    require(largest < 4e-7, "e^x - 1 - x for small positive x", largest);
    require(power_of_two(0.0f) == 1 && exponential(0.0f) == 1 && excess(0.0f) == 0, "at 0", power_of_two(0.0f));
    require(power_of_two(bounded_exponent(-HUGE_VALF)) == 0, "2^-Inf", power_of_two(bounded_exponent(-HUGE_VALF)));
    require(exponential(-HUGE_VALF) == 0 && exponential(HUGE_VALF) == HUGE_VALF, "e^Inf", exponential(HUGE_VALF));
    for (const uint32_t bits : {0x7fc00000u, 0x7fffffffu, 0xffc00001u, 0x7f800001u}) {
        const float nan = float_of(bits);
        require(std::isnan(power_of_two(bounded_exponent(nan))) && std::isnan(exponential(nan)), "NaN", bits);
    }
}

// Sixteen lanes give what one number gives, for numbers of every kind.
void lanes() {
    const float special[] = {0.0f, -0.0f, HUGE_VALF, -HUGE_VALF, NAN, 1e-45f, -3.4e38f, 88.5f};
    std::srand(3);
    for (int round = 0; round < 20000; ++round) {
        float x[kLanes], y[kLanes];
        for (int k = 0; k < kLanes; ++k) {
            x[k] = round < 8 ? special[(round + k) % 8] : static_cast<float>(std::rand()) / RAND_MAX * 40 - 20;
            y[k] = round < 8 ? special[(round * k) % 8] : static_cast<float>(std::rand()) / RAND_MAX - 0.5f;
        }
        const Lanes<float> a = load_lanes(x), b = load_lanes(y);
        const Lanes<float> power = power_of_two(bounded_exponent(a)), e = exponential(a), rest = excess(b);
        const Lanes<float> one = shifted_down<1>(a), two = shifted_down<2>(a);
        const Lanes<float> four = shifted_down<4>(a), eight = shifted_down<8>(a);
        const Lanes<float> chosen = select(a > b, a, b), least = clamp_low(a, b), sum = fused(a, b, e);
        const Lanes<float> most = clamp_high(a, b), both = larger(a, b);
        for (int k = 0; k < kLanes; ++k) {
            require(same(power.lane(k), power_of_two(bounded_exponent(x[k]))), "2^x in a lane", x[k]);
            require(same(e.lane(k), exponential(x[k])), "e^x in a lane", x[k]);
            require(same(rest.lane(k), excess(y[k])), "e^x - 1 - x in a lane", y[k]);
            require(same(chosen.lane(k), x[k] > y[k] ? x[k] : y[k]), "select", x[k]);
            require(same(least.lane(k), clamp_low(x[k], y[k])), "clamp_low", x[k]);
            require(same(most.lane(k), clamp_high(x[k], y[k])), "clamp_high", x[k]);
            require(same(both.lane(k), larger(x[k], y[k])), "larger", x[k]);
            require(same(sum.lane(k), fused(x[k], y[k], exponential(x[k]))), "fused", x[k]);
            require(same(one.lane(k), k + 1 < kLanes ? x[k + 1] : 0), "shifted by 1", k);
            require(same(two.lane(k), k + 2 < kLanes ? x[k + 2] : 0), "shifted by 2", k);
            require(same(four.lane(k), k + 4 < kLanes ? x[k + 4] : 0), "shifted by 4", k);
            require(same(eight.lane(k), k + 8 < kLanes ? x[k + 8] : 0), "shifted by 8", k);
        }
    }
}

template <class T>
void halves() {
    std::vector<T> all(1 << 16);
    for (uint32_t k = 0; k < all.size(); ++k) all[k].bits = static_cast<uint16_t>(k);
    for (size_t k = 0; k < all.size(); k += kLanes) {
        const Lanes<float> wide = load_lanes(&all[k]);
        float nudged[kLanes];
        for (int j = 0; j < kLanes; ++j) {
            require(same(wide.lane(j), widen(all[k + j])), "a half read in a lane", widen(all[k + j]));
            nudged[j] = float_of(bits_of(wide.lane(j)) + 0x1000u * (j % 3));  // ties of float16, and others
        }
        T back[kLanes], ties[kLanes];
        store_lanes(back, wide);
        store_lanes(ties, load_lanes(nudged));
        for (int j = 0; j < kLanes; ++j) {
            require(same(widen(back[j]), widen(all[k + j])), "a half written from a lane", widen(all[k + j]));
            require(same(widen(ties[j]), widen(Narrow<T>::from(nudged[j]))), "a rounded lane", nudged[j]);
        }
    }
    for (int64_t count = 1; count < kLanes; ++count) {  // a part of a register; a sanitizer sees what is beyond
        const std::vector<T> some(all.begin() + 16000, all.begin() + 16000 + count);
        std::vector<T> out(count);
        const Lanes<float> wide = load_lanes(some.data(), count, T{0x4000});
        store_lanes(out.data(), count, wide);
        for (int64_t k = 0; k < count; ++k) require(out[k].bits == some[k].bits, "part of a register", count);
        for (int64_t k = count; k < kLanes; ++k) require(wide.lane(k) == 2, "filler", wide.lane(k));
    }
}

}  // namespace

int main() {
    powers();
    lanes();
    halves<BFloat16>();
    halves<Float16>();
    std::printf("%d bytes a register\n", GIPO_VECTOR_BYTES);
    return 0;
}
