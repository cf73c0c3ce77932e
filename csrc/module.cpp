// gipo_mc._C: the kernels over addresses. gipo_mc/ops checks every argument before it comes here.
#include <pybind11/pybind11.h>

#include "cpu.h"
#include "group_objective.h"
#include "paged_attention.h"
#include "rotate_and_append.h"
#include "sampling.h"
#include "shape_and_gae.h"
#include "token_objective.h"
#include "token_statistics.h"

namespace py = pybind11;
using namespace gipo;

void bind_layers(py::module_& module);         // layers_module.cpp
void bind_shared_memory(py::module_& module);  // shared_memory_module.cpp

namespace {

using Address = uintptr_t;
using Release = py::call_guard<py::gil_scoped_release>;

template <class T = void>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// The last argument of a kernel: the number of threads (CPU) or the CUDA stream.
[[maybe_unused]] int where(int threads) {
    return threads;
}
[[maybe_unused]] void* where(Address stream) {
    return at(stream);
}

template <auto kernel, class Where>
void bind_token_partials(py::module_& module, const char* name) {
    module.def(
        name,
        [](Address logits, int dtype, int64_t rows, int64_t columns, int64_t stride, Address targets, int64_t first,
           double temperature, Address partials, Where last) {
            const LogitRows in{at(logits), DType(dtype),         rows,  columns,
                               stride,     at<int64_t>(targets), first, temperature};
            kernel(in, at(partials), where(last));
        },
        Release());
}

template <auto kernel, class Where>
void bind_token_statistics(py::module_& module, const char* name) {
    module.def(
        name,
        [](Address logits, int dtype, int64_t rows, int64_t columns, int64_t stride, Address targets, int64_t first,
           double temperature, Address logp, Address entropy, Address statistics, Where last) {
            const LogitRows in{at(logits), DType(dtype),         rows,  columns,
                               stride,     at<int64_t>(targets), first, temperature};
            kernel(in, {at(logp), at(entropy), at(statistics)}, where(last));
        },
        Release());
}

template <auto kernel, class Where>
void bind_token_merge(py::module_& module, const char* name) {
    module.def(
        name,
        [](Address partials, int dtype, int64_t ranks, int64_t rows, Address targets, double temperature, Address logp,
           Address entropy, Address statistics, Where last) {
            const PartialRows in{at(partials), DType(dtype), ranks, rows, at<int64_t>(targets), temperature};
            kernel(in, {at(logp), at(entropy), at(statistics)}, where(last));
        },
        Release());
}

template <auto kernel, class Where>
void bind_token_gradient(py::module_& module, const char* name) {
    module.def(
        name,
        [](Address logits, int dtype, int64_t rows, int64_t columns, int64_t stride, Address targets, int64_t first,
           double temperature, int64_t width, int64_t vocabulary, Address entropy, Address statistics, Address of_logp,
           Address of_entropy, Address out, int64_t out_stride, Where last) {
            const LogitRows in{at(logits), DType(dtype),         rows,  columns,
                               stride,     at<int64_t>(targets), first, temperature};
            const LogitGradient gradient{width,       vocabulary,     at(entropy), at(statistics),
                                         at(of_logp), at(of_entropy), at(out),     out_stride};
            kernel(in, gradient, where(last));
        },
        Release());
}

template <auto kernel, class Where>
void bind_group_objective(py::module_& module, const char* name) {
    module.def(
        name,
        [](Address logp, Address behaviour, Address reference, Address advantage, int dtype, int64_t batch,
           int64_t time, int64_t groups, Address length, Address probs, Address behaviour_signal, Address kl_weight,
           double clip, int estimator, int signal_form, Address sequences, Address sums, Where last) {
            const ObjectiveRows in{at(logp),      at(behaviour), at(reference),
                                   at(advantage), DType(dtype),  batch,
                                   time,          groups,        at<int64_t>(length),
                                   at(probs),     at(kl_weight), {clip, estimator, signal_form}};
            kernel(in, at(behaviour_signal), at(sequences), at(sums), where(last));
        },
        Release());
}

template <auto kernel, class Where>
void bind_group_objective_gradient(py::module_& module, const char* name) {
    module.def(
        name,
        [](Address logp, Address behaviour, Address reference, Address advantage, int dtype, int64_t batch,
           int64_t time, int64_t groups, Address length, Address probs, Address kl_weight, Address signal, double clip,
           int estimator, int signal_form, Address of_signal, Address of_surrogate, Address of_kl, Address of_mass,
           Address of_weighted, Address of_weighted_kl, Address logp_out, Address probs_out, Where last) {
            const ObjectiveRows in{at(logp),      at(behaviour), at(reference),
                                   at(advantage), DType(dtype),  batch,
                                   time,          groups,        at<int64_t>(length),
                                   at(probs),     at(kl_weight), {clip, estimator, signal_form}};
            const ObjectiveUpstream of{at(of_signal), at(of_surrogate), at(of_kl),
                                       at(of_mass),   at(of_weighted),  at(of_weighted_kl)};
            const ObjectiveGradient gradient{at(signal), of, at(logp_out), at(probs_out)};
            kernel(in, gradient, where(last));
        },
        Release());
}

template <auto kernel, class Where>
void bind_token_objective(py::module_& module, const char* name) {
    module.def(
        name,
        [](Address logits, int dtype, int64_t rows, int64_t columns, int64_t stride, Address targets,
           double temperature, Address behaviour, Address reference, Address advantage, int wide, int64_t batch,
           int64_t time, int64_t groups, Address length, Address probs, Address kl_weight, double clip, int estimator,
           int signal_form, Address start, int64_t chunk, Address behaviour_signal, Address statistics, Address chunks,
           Address sequences, Address sums, Where last) {
            const JoinedRows in{{at(logits), DType(dtype), rows, columns, stride, at<int64_t>(targets), 0, temperature},
                                {nullptr,
                                 at(behaviour),
                                 at(reference),
                                 at(advantage),
                                 DType(wide),
                                 batch,
                                 time,
                                 groups,
                                 at<int64_t>(length),
                                 at(probs),
                                 at(kl_weight),
                                 {clip, estimator, signal_form}},
                                at<int64_t>(start),
                                chunk};
            kernel(in, at(behaviour_signal), {at(statistics), at(chunks), at(sequences), at(sums)}, where(last));
        },
        Release());
}

template <auto kernel, class Where>
void bind_token_objective_gradient(py::module_& module, const char* name) {
    module.def(
        name,
        [](Address logits, int dtype, int64_t rows, int64_t columns, int64_t stride, Address targets,
           double temperature, Address behaviour, Address reference, Address advantage, int wide, int64_t batch,
           int64_t time, int64_t groups, Address length, Address probs, Address kl_weight, double clip, int estimator,
           int signal_form, Address start, int64_t chunk, Address signal, Address of_signal, Address of_surrogate,
           Address of_kl, Address of_mass, Address of_weighted, Address of_weighted_kl, Address of_entropy,
           Address statistics, int64_t width, Address out, int64_t out_stride, Address probs_out, Where last) {
            const JoinedRows in{{at(logits), DType(dtype), rows, columns, stride, at<int64_t>(targets), 0, temperature},
                                {nullptr,
                                 at(behaviour),
                                 at(reference),
                                 at(advantage),
                                 DType(wide),
                                 batch,
                                 time,
                                 groups,
                                 at<int64_t>(length),
                                 at(probs),
                                 at(kl_weight),
                                 {clip, estimator, signal_form}},
                                at<int64_t>(start),
                                chunk};
            const ObjectiveUpstream of{at(of_signal), at(of_surrogate), at(of_kl),
                                       at(of_mass),   at(of_weighted),  at(of_weighted_kl)};
            const ObjectiveGradient objective{at(signal), of, nullptr, at(probs_out)};
            kernel(in, {objective, at(statistics), at(of_entropy), width, at(out), out_stride}, where(last));
        },
        Release());
}

template <auto kernel, class Where>
void bind_shape_and_gae(py::module_& module, const char* name) {
    module.def(
        name,
        [](Address behaviour, Address reference, Address values, int dtype, int64_t batch, int64_t time, Address reward,
           Address length, Address kl_weight, double gamma, double lambda, int estimator, Address rewards,
           Address advantages, Address returns, Address kl, Address row_sums, Address totals, Where last) {
            const RewardRows in{at(behaviour), at(reference),       at(values),    DType(dtype), batch,  time,
                                at(reward),    at<int64_t>(length), at(kl_weight), gamma,        lambda, estimator};
            const ShapedRows out{at(rewards), at(advantages), at(returns), at(kl), at(row_sums), at<double>(totals)};
            kernel(in, out, where(last));
        },
        Release());
}

template <auto kernel, class Where>
void bind_rotate_and_append(py::module_& module, const char* name) {
    module.def(
        name,
        [](Address qkv, int dtype, int64_t rows, int64_t stride, int64_t queries, Address cos, Address sin,
           int64_t positions, Address slot, Address position, Address keys, Address values, int64_t pages,
           int64_t heads, int64_t width, Address table, int64_t slots, int64_t slot_pages, int64_t table_stride,
           Address query, Where last) {
            const NewTokens in{at(qkv),
                               rows,
                               stride,
                               queries,
                               at<float>(cos),
                               at<float>(sin),
                               positions,
                               at<int64_t>(slot),
                               at<int64_t>(position),
                               at(query)};
            const PagedCache cache{at(keys), at(values),         DType(dtype), pages,      heads,
                                   width,    at<int32_t>(table), slots,        slot_pages, table_stride};
            kernel(in, cache, where(last));
        },
        Release());
}

// Parts: the buffer that the CUDA kernel works in.
template <auto kernel, class Where, class... Parts>
void bind_paged_attention(py::module_& module, const char* name) {
    module.def(
        name,
        [](Address query, int dtype, int64_t rows, int64_t queries, Address slot, Address length, double scale,
           Address keys, Address values, int64_t pages, int64_t heads, int64_t width, Address table, int64_t slots,
           int64_t slot_pages, int64_t table_stride, Address out, Parts... parts, Where last) {
            const QueryRows in{at(query), rows, queries, at<int64_t>(slot), at<int64_t>(length), scale, at(out)};
            const PagedCache cache{at(keys), at(values),         DType(dtype), pages,      heads,
                                   width,    at<int32_t>(table), slots,        slot_pages, table_stride};
            kernel(in, cache, at<float>(parts)..., where(last));
        },
        Release());
}

template <auto kernel, class Where>
void bind_sample(py::module_& module, const char* name) {
    module.def(
        name,
        [](Address logits, int dtype, int64_t rows, int64_t columns, int64_t stride, int64_t candidates,
           Address uniforms, double temperature, int64_t top_k, double top_p, Address segments, Address tokens,
           Address logp, Where last) {
            const SampleRows in{at(logits),
                                DType(dtype),
                                rows,
                                columns,
                                stride,
                                candidates,
                                at<double>(uniforms),
                                temperature,
                                top_k,
                                top_p,
                                at<SegmentPart>(segments)};
            kernel(in, {at<int64_t>(tokens), at<double>(logp)}, where(last));
        },
        Release());
}

py::dict build_info() {
    py::dict info;
#ifdef GIPO_MC_WITH_CUDA
    info["cuda"] = true;
    info["cuda_version"] = GIPO_MC_CUDA_VERSION;
    info["cuda_architectures"] = GIPO_MC_CUDA_ARCHITECTURES;
#else
    info["cuda"] = false;
    info["cuda_version"] = "";
    info["cuda_architectures"] = "";
#endif
    info["cpu"] = instruction_set().name;
    info["compiler"] = __VERSION__;
    return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "Native kernels of gipo_mc; use them through gipo_mc.ops, which checks what it hands over.";
    module.def(
        "build_info", &build_info,
        "What was built: cuda, cuda_version, cuda_architectures, compiler; and cpu, the instruction set in use.");

    module.def(
        "sample_segments", [](int64_t columns, int64_t candidates) { return Segments(columns, candidates).count(); },
        "Segments of a row, each of which takes two floats of room in sample_cuda.");

    bind_token_partials<token_partials_cpu, int>(module, "token_partials_cpu");
    bind_token_statistics<token_statistics_cpu, int>(module, "token_statistics_cpu");
    bind_token_merge<token_merge_cpu, int>(module, "token_merge_cpu");
    bind_token_gradient<token_gradient_cpu, int>(module, "token_gradient_cpu");
    bind_group_objective<group_objective_cpu, int>(module, "group_objective_cpu");
    bind_group_objective_gradient<group_objective_gradient_cpu, int>(module, "group_objective_gradient_cpu");
    bind_shape_and_gae<shape_and_gae_cpu, int>(module, "shape_and_gae_cpu");
    bind_sample<sample_cpu, int>(module, "sample_cpu");
    bind_token_objective<token_objective_cpu, int>(module, "token_objective_cpu");
    bind_token_objective_gradient<token_objective_gradient_cpu, int>(module, "token_objective_gradient_cpu");
    bind_rotate_and_append<rotate_and_append_cpu, int>(module, "rotate_and_append_cpu");
    bind_paged_attention<paged_attention_cpu, int>(module, "paged_attention_cpu");
    bind_layers(module);
    bind_shared_memory(module);
#ifdef GIPO_MC_WITH_CUDA
    bind_token_partials<token_partials_cuda, Address>(module, "token_partials_cuda");
    bind_token_statistics<token_statistics_cuda, Address>(module, "token_statistics_cuda");
    bind_token_merge<token_merge_cuda, Address>(module, "token_merge_cuda");
    bind_token_gradient<token_gradient_cuda, Address>(module, "token_gradient_cuda");
    bind_group_objective<group_objective_cuda, Address>(module, "group_objective_cuda");
    bind_group_objective_gradient<group_objective_gradient_cuda, Address>(module, "group_objective_gradient_cuda");
    bind_shape_and_gae<shape_and_gae_cuda, Address>(module, "shape_and_gae_cuda");
    bind_sample<sample_cuda, Address>(module, "sample_cuda");
    bind_token_objective<token_objective_cuda, Address>(module, "token_objective_cuda");
    bind_token_objective_gradient<token_objective_gradient_cuda, Address>(module, "token_objective_gradient_cuda");
    bind_rotate_and_append<rotate_and_append_cuda, Address>(module, "rotate_and_append_cuda");
    bind_paged_attention<paged_attention_cuda, Address, Address>(module, "paged_attention_cuda");
#endif
}
