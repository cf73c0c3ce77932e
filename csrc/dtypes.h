// From the code of an element type to the type.
#pragma once

#include <stdexcept>
#include <string>

#include "numbers.h"

namespace gipo {

// Calls `visit` with a value of the C++ type that `dtype` names.
template <class Visit>
void with_type(DType dtype, Visit&& visit) {
    switch (dtype) {
        case DType::kFloat32:
            return visit(float{});
        case DType::kBFloat16:
            return visit(BFloat16{});
        case DType::kFloat16:
            return visit(Float16{});
        case DType::kFloat64:
            return visit(double{});
    }
    throw std::invalid_argument("gipo_mc._C: unknown dtype code " + std::to_string(static_cast<int>(dtype)) + ".");
}

// The kernel for `dtype` in an array that is indexed by its code.
template <class Kernel, size_t count>
Kernel kernel_of(Kernel const (&kernels)[count], DType dtype) {
    const auto code = static_cast<size_t>(dtype);
    if (code < count) return kernels[code];
    throw std::invalid_argument("gipo_mc._C: unknown dtype code " + std::to_string(code) + ".");
}

}  // namespace gipo
