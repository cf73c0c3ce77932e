// The part of gipo_mc._C through which gipo_mc/ops/shared_memory.py uses a room; nothing where there is no Linux.
#include <pybind11/pybind11.h>

#include "shared_memory.h"

namespace py = pybind11;
using namespace gipo;

namespace {

using Address = uintptr_t;
using Release = py::call_guard<py::gil_scoped_release>;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

}  // namespace

void bind_shared_memory(py::module_& module) {
#ifdef __linux__
    module.def("room_bytes", &room_bytes);
    module.attr("ROOM_PIECE") = kPiece;
    module.attr("ROOM_LETTERS") = kLetters;
    py::class_<Room>(module, "Room")
        .def(py::init([](Address base, int64_t ranks, int64_t rank, int64_t spins) {
            return Room{at<char>(base), ranks, rank, spins};
        }))
        .def(
            "post",
            [](const Room& room, uint32_t number, Address data, int64_t bytes, int64_t stride, int64_t pieces,
               int64_t milliseconds) {
                return post(room, number, at<char>(data), bytes, stride, pieces, milliseconds);
            },
            Release())
        .def(
            "reduce",
            [](const Room& room, uint32_t number, Address out, int64_t count, int64_t offset, int element,
               int reduction, int64_t milliseconds) {
                return reduce(room, number, at<char>(out), count, offset, Element(element), Reduction(reduction),
                              milliseconds);
            },
            Release())
        .def(
            "take",
            [](const Room& room, uint32_t number, int64_t from, Address out, int64_t bytes, int64_t milliseconds) {
                return take(room, number, from, at<char>(out), bytes, milliseconds);
            },
            Release())
        .def("finish", &finish, Release())
        .def(
            "send",
            [](const Room& room, uint32_t number, int64_t to, Address data, int64_t bytes, int64_t milliseconds) {
                return send(room, number, to, at<char>(data), bytes, milliseconds);
            },
            Release())
        .def(
            "receive",
            [](const Room& room, uint32_t number, int64_t from, Address out, int64_t bytes, int64_t milliseconds) {
                return receive(room, number, from, at<char>(out), bytes, milliseconds);
            },
            Release());
#else
    (void)module;
#endif
}
