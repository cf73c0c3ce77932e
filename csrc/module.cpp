// gipo_mc._C: what was built. The kernels' bindings follow.
#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_C, module) {
    module.doc() = "Native kernels of gipo_mc; use them through gipo_mc.ops, which checks what it hands over.";
    module.def("build_info", [] {
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
        info["compiler"] = __VERSION__;
        return info;
    });
}
