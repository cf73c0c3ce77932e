// Every formula of ops A, B and C, once, for the CPU and the CUDA kernels. `A` is float or double, or, on the CPU,
// sixteen of them (lanes.h); what differs between sequences or rows only is a scalar.
#pragma once

#include "numbers.h"

namespace gipo {

// What a comparison of two A gives.
template <class A>
using Mask = decltype(A() < A());

// The larger of two numbers; NaN if either is, in whichever order they come.
template <class A>
GIPO_HD A larger(A a, A b) {
    return select(a != a, a, clamp_low(b, a));
}

// ---- Op A: softmax statistics -------------------------------------------------------------------------------------

// Part of a row of logits: its maximum m (as stored, not scaled), sum e^u and sum e^u u, with u = (z - m) /
// temperature. Centring u keeps the entropy exact for logits of any size: H = ln sum - weighted / sum.
template <class A>
struct SoftmaxPart {
    A maximum, sum, weighted;
};

template <class A>
GIPO_HD SoftmaxPart<A> empty_part() {
    return {minus_infinity<A>(), 0, 0};
}

// u log2(e) of a logit: e^u is 2 to that power. Bounded below so that the term of a logit of -Inf is exactly 0. Beside
// a maximum of -Inf there are only such logits, and it is taken for 0. `scale`: log2(e) / temperature.
template <class A>
GIPO_HD A exponent_of(A logit, A maximum, A scale) {
    return bounded_exponent((logit - select(is_minus_infinity(maximum), A(0), maximum)) * scale);
}

// The same part seen from a larger maximum.
template <class A>
GIPO_HD SoftmaxPart<A> rescale(const SoftmaxPart<A>& part, A maximum, A inverse_temperature) {
    if (part.maximum == maximum) return part;
    const A shift = exponent_of(part.maximum, maximum, inverse_temperature * A(kLog2E));
    const A factor = power_of_two(shift);
    return {maximum, part.sum * factor, factor * (part.weighted + part.sum * (shift * A(kLn2)))};
}

template <class A>
GIPO_HD SoftmaxPart<A> merge(const SoftmaxPart<A>& a, const SoftmaxPart<A>& b, A inverse_temperature) {
    const A maximum = a.maximum > b.maximum ? a.maximum : b.maximum;
    const SoftmaxPart<A> x = rescale(a, maximum, inverse_temperature), y = rescale(b, maximum, inverse_temperature);
    return {maximum, x.sum + y.sum, x.weighted + y.weighted};
}

template <class A>
struct TokenResult {
    A logp, entropy, log_sum;
};

template <class A>
GIPO_HD TokenResult<A> token_result(const SoftmaxPart<A>& whole, A target_logit, A inverse_temperature) {
    const A log_sum = logarithm(whole.sum);
    return {(target_logit - whole.maximum) * inverse_temperature - log_sum, log_sum - whole.weighted / whole.sum,
            log_sum};
}

// What the gradient of a row needs: statistics of the whole row, and the gradients of its log-prob and entropy.
template <class A>
struct TokenSlope {
    A maximum, log_sum, entropy, logp_gradient, entropy_gradient, inverse_temperature;

    GIPO_HD bool zero() const { return logp_gradient == A(0) && entropy_gradient == A(0); }

    // -(c p + e p (ln p + H)) / temperature, the gradient of every logit but the target's, in terms of log2 p. What
    // does not depend on the logit is computed once a row by any compiler.
    GIPO_HD A beside_target(A logit) const {
        const A x = log2_probability(logit);
        return power_of_two(x) * fused(x + entropy * log2e(), of_entropy(), -(logp_gradient * inverse_temperature));
    }

    // (c (1 - p) - e p (ln p + H)) / temperature, the gradient of the target's logit.
    GIPO_HD A of_target(A logit) const {
        const A x = log2_probability(logit), p = power_of_two(x);
        return (A(1) - p) * (logp_gradient * inverse_temperature) + p * ((x + entropy * log2e()) * of_entropy());
    }

  private:
    static GIPO_HD A log2e() { return A(Scalar<A>(kLog2E)); }
    GIPO_HD A of_entropy() const { return -(entropy_gradient * inverse_temperature * A(Scalar<A>(kLn2))); }
    GIPO_HD A log2_probability(A logit) const {
        return bounded_exponent(fused(logit - maximum, inverse_temperature * log2e(), -(log_sum * log2e())));
    }
};

// ---- Ops B and C: KL estimators -----------------------------------------------------------------------------------

enum Estimator : int { kK1 = 0, kK2 = 1, kK3 = 2 };  // positions in gipo_mc/ops/checks.py
enum SignalForm : int { kRatio = 0, kLogProb = 1, kLogProbMean = 2 };

// KL(pi || reference) from d = log pi - log reference of a sample of pi, and its derivative with respect to log pi.
template <class A>
GIPO_HD A kl_estimate(A d, int estimator) {
    if (estimator == kK1) return d;
    if (estimator == kK2) return d * d * A(0.5);
    return excess(-d);
}
template <class A>
GIPO_HD A kl_slope(A d, int estimator) {
    if (estimator == kK1) return A(1);
    if (estimator == kK2) return d;
    return d - excess(-d);  // 1 - e^-d
}

// ---- Op B: the token terms of the group objective -----------------------------------------------------------------

struct ObjectiveOptions {
    double clip;
    int estimator;
    int signal_form;
};

template <class A>
struct ObjectiveToken {
    A growth, signal, surrogate, kl, clipped, ratio, behaviour_kl;  // growth = ratio - 1
};

// min(ratio A, clip(ratio) A), and whether the clip decides.
template <class A>
struct Surrogate {
    A value;
    Mask<A> clipped;
};
template <class A>
GIPO_HD Surrogate<A> surrogate(A ratio, A advantage, A lowest, A highest) {
    const A bounded = clamp(ratio, lowest, highest);
    const A free = ratio * advantage, held = bounded * advantage;
    return {select(held < free, held, free), held < free};
}

template <class A>
struct ObjectiveFormula {
    A lowest, highest;
    int estimator, signal_form;

    explicit GIPO_HD ObjectiveFormula(const ObjectiveOptions& options)
        : lowest(static_cast<Scalar<A>>(1.0 - options.clip)),
          highest(static_cast<Scalar<A>>(1.0 + options.clip)),
          estimator(options.estimator),
          signal_form(options.signal_form) {}

    GIPO_HD ObjectiveToken<A> token(A logp, A behaviour, A reference, A advantage) const {
        const A d = logp - behaviour;
        const Exponential<A> e = exponential_of(d);
        const A ratio = e.value, growth = e.excess + d;
        const Surrogate<A> s = surrogate(ratio, advantage, lowest, highest);
        return {growth,
                (signal_form == kRatio ? growth : logp) * advantage,
                s.value,
                kl_estimate(logp - reference, estimator),
                select(s.clipped, A(1), A(0)),
                ratio,
                e.excess};
    }

    // s_i from the sum of the token signals. A sequence without tokens keeps that of the behaviour policy.
    GIPO_HD A sequence_signal(A total, A behaviour_signal, int64_t length) const {
        const A mean = length > 0 ? total / static_cast<A>(length) : A(0);
        if (signal_form == kRatio) return behaviour_signal + mean;
        return signal_form == kLogProb ? total : mean;
    }

    // Gradient of a token's log-prob; the coefficients are d loss / d (sum of token signals, surrogates, KLs). A
    // coefficient of 0 silences its term even where the term is not finite.
    template <class S>
    GIPO_HD A slope(A logp, A behaviour, A reference, A advantage, S of_signal, S of_surrogate, S of_kl) const {
        const A ratio = exponential(logp - behaviour);
        const A free = ratio * advantage;
        A total = A(0);
        if (of_signal != S(0)) total += A(of_signal) * (signal_form == kRatio ? free : advantage);
        if (of_surrogate != S(0)) {
            const Mask<A> held = surrogate(ratio, advantage, lowest, highest).clipped;
            total += select(held, A(0), A(of_surrogate) * free);
        }
        if (of_kl != S(0)) total += A(of_kl) * kl_slope(logp - reference, estimator);
        return total;
    }

    // d (sum of token signals) / d s_i
    GIPO_HD A signal_share(int64_t length) const {
        return signal_form == kLogProb || length == 0 ? A(1) : A(1) / static_cast<A>(length);
    }
};

// ---- Op C: shaped reward and advantage ----------------------------------------------------------------------------

template <class A>
GIPO_HD A kl_penalty(A kl, A kl_weight) {
    return -kl_weight * kl;
}

template <class A>
GIPO_HD A shaped_reward(A kl, A kl_weight, A reward, bool last) {
    const A penalty = kl_penalty(kl, kl_weight);
    return last ? reward + penalty : penalty;
}

template <class A>
GIPO_HD A temporal_difference(A reward, A value, A next_value, A gamma) {
    return reward + gamma * next_value - value;
}

// A response length as the kernels use it: inside the buffers whatever the caller gave.
GIPO_HD int64_t bounded_length(int64_t length, int64_t time) {
    return length < 0 ? 0 : (length > time ? time : length);
}

}  // namespace gipo
