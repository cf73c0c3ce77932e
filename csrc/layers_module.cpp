// The part of gipo_mc._C through which gipo_mc/ops/layers/ runs the ops of a layer.
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

// sequence_first: rows are those of one sequence after those of another, and not of one position after another.
template <class Run>
void bind_attention(py::module_& module, const char* name, const Run& run) {
    module.def(
        name,
        [run](Address qkv, bool sequence_first, int64_t length, int64_t batch, int64_t heads, int64_t queries,
              int64_t width, Address cos, Address sin, int64_t turn_stride, double scale, Address statistics,
              Address seen, Address of_qkv, int threads) {
            const int64_t next_position = sequence_first ? 1 : batch, next_sequence = sequence_first ? length : 1;
            const Sequences in{at(qkv),       length,  batch,   heads,       queries, width,         next_position,
                               next_sequence, at(cos), at(sin), turn_stride, scale,   at(statistics)};
            run(in, at(seen), at(of_qkv), threads);
        },
        Release());
}

}  // namespace

void bind_layers(py::module_& module) {
    bind_attention(module, "causal_attention_cpu", [](const Sequences& in, float* seen, float*, int threads) {
        causal_attention_cpu(in, seen, threads);
    });
    bind_attention(module, "causal_attention_gradient_cpu",
                   [](const Sequences& in, float* of_seen, float* of_qkv, int threads) {
                       causal_attention_gradient_cpu(in, {of_seen, of_qkv}, threads);
                   });
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
