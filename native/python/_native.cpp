// The extension module mpickpt._native: the C interface of mpickpt.h, call by call, for mpickpt/snapshot/. Only this folder
// knows Python. It checks types, keeps alive what the C side points to, and releases the interpreter lock wherever a call
// may wait; it decides nothing.
#include "binding.h"

static memory_array allocate(size_t bytes, bool huge) {
    void *memory = mpk_alloc(bytes, huge ? MPK_ALLOC_HUGE : 0);
    if (!memory) raise_errno(-ENOMEM);
    return own(memory, bytes);
}

static uint32_t crc32c(const_bytes_array data, uint32_t value) {
    nb::gil_scoped_release release;
    return mpk_crc32c(value, data.data(), data.size());
}

static std::vector<size_t> read_blocks(const std::string &path, uint64_t offset, bytes_array out, size_t block_bytes,
                                       checksum_array checksums, bool direct) {
    size_t blocks = block_bytes ? (out.size() + block_bytes - 1) / block_bytes : 0;
    if (checksums.size() < blocks) throw nb::value_error("there are fewer checksums than blocks");
    std::vector<size_t> corrupt(blocks);
    size_t n = 0;
    int result;
    {
        nb::gil_scoped_release release;
        result = mpk_read_blocks(path.c_str(), offset, out.data(), out.size(), block_bytes, checksums.data(), direct,
                                 corrupt.data(), &n);
    }
    check(result, path.c_str());
    corrupt.resize(n);
    return corrupt;
}

static std::pair<uint64_t, int> reads_repeated() {
    int error;
    uint64_t count = mpk_reads_repeated(&error);
    return {count, error};
}

static void guard_open(bool donate_cores) { check(mpk_guard_open(donate_cores ? 0 : MPK_GUARD_KEEPS_CORES)); }
static bool guard_refresh() {
    int result = mpk_guard_refresh();
    check(result);
    return result != 0;
}
static std::vector<std::pair<std::string, int>> guard_unguarded() {
    std::vector<std::pair<std::string, int>> found;
    int error;
    while (const char *path = mpk_guard_unguarded(found.size(), &error)) found.emplace_back(path, -error);
    return found;
}
static void pin(const_bytes_array data) { check(mpk_pin(data.data(), data.size())); }
static void unpin(const_bytes_array data) { mpk_unpin(data.data(), data.size()); }

static void disinherit_descriptor(int fd) { check(mpk_disinherit_descriptor(fd)); }
static void disinherit_signal(int number, bool was_ignored) { check(mpk_disinherit_signal(number, was_ignored)); }

static uintptr_t signal_handler(int number) {
    uintptr_t handler;
    check(mpk_signal_handler(number, &handler));
    return handler;
}
static void term_watch(double again, double limit, bool ends_process) {
    check(mpk_term_watch(static_cast<uint64_t>(again * 1e9), static_cast<uint64_t>(limit * 1e9), ends_process));
}
static bool term_take_again() { return mpk_term_take_again() != 0; }
static void term_set_saving(bool on) { mpk_term_set_saving(on); }

static void bind_record(nb::module_ &m) {
    m.attr("RECORD_BYTES") = sizeof(mpk_record);
    nb::dict offsets;
#define FIELD(name) offsets[#name] = offsetof(mpk_record, name)
    FIELD(magic), FIELD(state), FIELD(rank), FIELD(epoch), FIELD(step), FIELD(run), FIELD(digest);
    FIELD(objects_bytes), FIELD(objects_crc), FIELD(objects_spilled), FIELD(cut_time_ns), FIELD(blocked_ns);
    offsets["errno"] = offsetof(mpk_record, error); // errno is a macro in C
    FIELD(drain_ns), FIELD(bytes_written), FIELD(blocks_copied), FIELD(stall_ns), FIELD(bytes_waiting);
    FIELD(channels_bytes), FIELD(channels_crc), FIELD(channels_spilled), FIELD(crc);
#undef FIELD
    m.attr("RECORD_OFFSETS") = offsets;
}

#ifdef MPICKPT_CHECKS
static constexpr bool checks = true;
#else
static constexpr bool checks = false;
#endif

NB_MODULE(_native, m) {
    m.doc() = "The native core of mpickpt; use mpickpt.snapshot.";
    m.def("allocate", &allocate, "nbytes"_a, "huge"_a);
    m.def("crc32c", &crc32c, "data"_a.noconvert(), "value"_a = 0);
    m.def("reads_repeated", &reads_repeated);
    m.def("read_blocks", &read_blocks, "path"_a, "offset"_a, "out"_a.noconvert(), "block_bytes"_a, "checksums"_a.noconvert(),
          "direct"_a);
    m.def("guard_open", &guard_open, "donate_cores"_a);
    m.def("guard_refresh", &guard_refresh);
    m.def("guard_unguarded", &guard_unguarded);
    m.def("guard_close", &mpk_guard_close);
    m.def("term_watch", &term_watch, "again"_a, "limit"_a, "ends_process"_a);
    m.def("term_unwatch", &mpk_term_unwatch);
    m.def("term_set_saving", &term_set_saving, "on"_a);
    m.def("term_take_again", &term_take_again);
    m.def("pin", &pin, "data"_a.noconvert());
    m.def("unpin", &unpin, "data"_a.noconvert());
    m.def("disinherit_descriptor", &disinherit_descriptor, "fd"_a);
    m.def("inherit_descriptor", &mpk_inherit_descriptor, "fd"_a);
    m.def("disinherit_signal", &disinherit_signal, "number"_a, "was_ignored"_a);
    m.def("inherit_signal", &mpk_inherit_signal, "number"_a);
    m.def("signal_handler", &signal_handler, "number"_a);
    m.attr("CHECKS") = checks;
    bind_record(m);
    bind_session(m);
    bind_loader(m);
    bind_copier(m);
}
