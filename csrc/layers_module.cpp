// The part of gipo_mc._C through which gipo_mc/ops/layers.py runs the ops of a layer.
#include <pybind11/pybind11.h>

#include "causal_attention.h"
#include "layer_rows.h"

namespace py = pybind11;
using namespace gipo;

namespace {

using Address = uintptr_t;
using Release = py::call_guard<py::gil_scoped_release>;

float* at(Address address) {
    return reinterpret_cast<float*>(address);
}

Sequences sequences(Address qkv, int64_t length, int64_t batch, int64_t heads, int64_t queries, int64_t width,
                    Address cos, Address sin, int64_t turn_stride, double scale, Address statistics) {
    return {at(qkv), length, batch, heads, queries, width, at(cos), at(sin), turn_stride, scale, at(statistics)};
}

}  // namespace

void bind_layers(py::module_& module) {
    module.def(
        "causal_attention_cpu",
        [](Address qkv, int64_t length, int64_t batch, int64_t heads, int64_t queries, int64_t width, Address cos,
           Address sin, int64_t turn_stride, double scale, Address statistics, Address seen, int threads) {
            causal_attention_cpu(
                sequences(qkv, length, batch, heads, queries, width, cos, sin, turn_stride, scale, statistics),
                at(seen), threads);
        },
        Release());
    module.def(
        "causal_attention_gradient_cpu",
        [](Address qkv, int64_t length, int64_t batch, int64_t heads, int64_t queries, int64_t width, Address cos,
           Address sin, int64_t turn_stride, double scale, Address statistics, Address of_seen, Address of_qkv,
           int threads) {
            causal_attention_gradient_cpu(
                sequences(qkv, length, batch, heads, queries, width, cos, sin, turn_stride, scale, statistics),
                {at(of_seen), at(of_qkv)}, threads);
        },
        Release());
    module.def(
        "norm_rows_cpu",
        [](Address x, Address other, int64_t rows, int64_t columns, Address weight, double epsilon, Address sum,
           Address normed, Address inverse, int threads) {
            norm_rows_cpu({at(x), at(other), rows, columns, at(weight), epsilon}, {at(sum), at(normed), at(inverse)},
                          threads);
        },
        Release());
    module.def(
        "norm_rows_gradient_cpu",
        [](Address sum, int64_t rows, int64_t columns, Address weight, Address of_normed, Address of_sum,
           Address inverse, Address of_x, Address shares, Address of_weight, int threads) {
            norm_rows_gradient_cpu({at(sum), nullptr, rows, columns, at(weight), 0.0},
                                   {at(of_normed), at(of_sum), at(inverse), at(of_x), at(shares), at(of_weight)},
                                   threads);
        },
        Release());
    module.def(
        "gated_silu_cpu",
        [](Address both, int64_t rows, int64_t columns, Address out, int threads) {
            gated_silu_cpu({at(both), rows, columns}, at(out), threads);
        },
        Release());
    module.def(
        "gated_silu_gradient_cpu",
        [](Address both, int64_t rows, int64_t columns, Address of_out, Address of_both, int threads) {
            gated_silu_gradient_cpu({at(both), rows, columns}, at(of_out), at(of_both), threads);
        },
        Release());
}
