// What the files of the extension module share: array types, errors, and memory that Python owns.
#ifndef MPICKPT_BINDING_H
#define MPICKPT_BINDING_H

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cerrno>

#include "mpickpt.h"

namespace nb = nanobind;
using namespace nb::literals;

// Without .noconvert() at the argument a strided array would be copied, and the copy be protected.
using bytes_array = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using const_bytes_array = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using checksum_array = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

[[noreturn]] inline void raise_errno(int negative_errno, const char *path = nullptr) {
    errno = -negative_errno;
    PyErr_SetFromErrnoWithFilename(PyExc_OSError, path);
    throw nb::python_error();
}

inline void check(int result, const char *path = nullptr) {
    if (result < 0) raise_errno(result, path);
}

using memory_array = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;

// The memory is given back when the array and all its views are gone.
inline memory_array own(void *memory, size_t bytes) {
    struct owned {
        void *memory;
        size_t bytes;
    };
    auto *mine = new owned{memory, bytes};
    nb::capsule owner(mine, [](void *p) noexcept {
        auto *o = static_cast<owned *>(p);
        mpk_free(o->memory, o->bytes);
        delete o;
    });
    return memory_array(memory, {bytes}, owner);
}

void bind_session(nb::module_ &m);
void bind_loader(nb::module_ &m);
void bind_copier(nb::module_ &m);

#endif
