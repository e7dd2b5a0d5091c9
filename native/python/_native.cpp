// The extension module mpickpt._native: the C interface of mpickpt.h, call by call, for mpickpt/snapshot/. The only
// file that includes Python. It checks types, keeps alive what the C side points to, and lets go of the interpreter
// lock wherever a call may wait; it decides nothing.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cerrno>
#include <cstring>

#include "mpickpt.h"

namespace nb = nanobind;
using namespace nb::literals;

// Without .noconvert() at the argument a strided array would be copied, and the copy be protected.
using bytes_array = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using const_bytes_array = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using checksum_array = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

[[noreturn]] static void raise_errno(int negative_errno, const char *path = nullptr) {
    errno = -negative_errno;
    PyErr_SetFromErrnoWithFilename(PyExc_OSError, path);
    throw nb::python_error();
}

static void check(int result, const char *path = nullptr) {
    if (result < 0) raise_errno(result, path);
}

using memory_array = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;

// The memory is given back when the array and all its views are gone.
static memory_array own(void *memory, size_t bytes) {
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

class Session {
  public:
    Session(bool direct, bool predict)
        : flags_((direct ? 0 : MPK_SESSION_BUFFERED) | (predict ? 0 : MPK_SESSION_BY_ADDRESS)) {
        check(mpk_session_create(&session_, flags_));
    }
    ~Session() {
        unseal();
        mpk_session_destroy(session_);
    }
    Session(const Session &) = delete;
    Session &operator=(const Session &) = delete;

    void add(bytes_array data, bool owned) {
        check(mpk_region_add(session_, data.data(), data.size(), owned ? MPK_REGION_OWNED : 0));
        kept_.push_back(data);
    }
    void ask_before_taking(nb::object may) {
        may_ = may;
        mpk_session_ask_before_taking(session_, may.is_none() ? nullptr : ask, this);
    }
    nb::list look_up() { /* for each region the fields of mpickpt.snapshot.Memory */
        int result;
        {
            nb::gil_scoped_release release;
            result = mpk_session_look_up(session_);
        }
        nb::list all;
        bool told = false;
        mpk_memory memory;
        for (uint32_t i = 0; i < kept_.size(); i++) {
            check(mpk_region_memory(session_, i, &memory));
            told |= memory.error != 0;
            nb::object path = nb::steal(PyUnicode_DecodeFSDefault(memory.path));
            int mapping = static_cast<int>(memory.mapping);
            all.append(nb::make_tuple(mapping, memory.is_pinned != 0, path, memory.error, memory.absent_bytes));
        }
        if (!told) check(result);
        return all;
    }
    size_t seal(size_t block_bytes, size_t pool_bytes) {
        int result;
        {
            nb::gil_scoped_release release;
            result = mpk_session_seal(session_, block_bytes, pool_bytes);
        }
        check(result);
        return mpk_session_pool_bytes(session_);
    }
    void resume(const std::string &path, uint64_t record_offset, const std::vector<uint64_t> &checksum_offsets,
                uint64_t epoch) {
        if (checksum_offsets.size() != kept_.size()) throw nb::value_error("as many offsets as regions are needed");
        check(mpk_session_resume(session_, path.c_str(), record_offset, checksum_offsets.data(), epoch), path.c_str());
    }
    // False: the storage hangs, and the session was abandoned to its threads. They use the arrays, which therefore stay for good.
    bool unseal() {
        int result;
        {
            nb::gil_scoped_release release;
            result = mpk_session_unseal(session_);
        }
        if (result == 0) {
            kept_.clear();
            return true;
        }
        new std::vector<bytes_array>(std::move(kept_));
        kept_.clear();
        session_ = nullptr;
        check(mpk_session_create(&session_, flags_));
        return false;
    }
    void set_stall_limit(double seconds, const std::string &text) {
        check(mpk_session_set_stall_limit(session_, static_cast<uint64_t>(seconds * 1e9), text.c_str()));
    }
    void give_up() { check(mpk_give_up(session_)); }
    std::pair<uint32_t, uint32_t> calls() const {
        mpk_progress p;
        mpk_session_progress(session_, &p);
        return {p.calls, p.calls_ended};
    }
    void cut(const std::string &path, uint64_t epoch, uint64_t step, uint32_t rank, uint64_t run, nb::bytes digest,
             const std::vector<uint64_t> &data_offsets, const std::vector<uint64_t> &checksum_offsets,
             uint64_t record_offset, nb::bytes objects, uint64_t objects_offset,
             const std::optional<std::string> &spill_path, bool channels_follow, uint64_t channels_offset,
             size_t channels_room, const std::optional<std::string> &channels_spill_path) {
        mpk_plan plan = {};
        if (data_offsets.size() != kept_.size() || checksum_offsets.size() != kept_.size())
            throw nb::value_error("as many offsets as regions are needed");
        if (digest.size() != sizeof plan.digest) throw nb::value_error("a digest has 32 bytes");
        plan.path = path.c_str();
        plan.data_offsets = data_offsets.data();
        plan.checksum_offsets = checksum_offsets.data();
        plan.record_offset = record_offset;
        plan.objects = objects.c_str();
        plan.objects_bytes = objects.size();
        plan.objects_offset = objects_offset;
        plan.spill_path = spill_path ? spill_path->c_str() : nullptr;
        plan.channels_follow = channels_follow;
        plan.channels_offset = channels_offset;
        plan.channels_room = channels_room;
        plan.channels_spill_path = channels_spill_path ? channels_spill_path->c_str() : nullptr;
        plan.epoch = epoch;
        plan.step = step;
        plan.run = run;
        plan.rank = rank;
        std::memcpy(plan.digest, digest.c_str(), sizeof plan.digest);
        check(mpk_cut(session_, &plan), path.c_str()); // keeps the lock: no other Python thread runs at the cut
    }
    void add_channels(nb::bytes data) { check(mpk_add_channels(session_, data.c_str(), data.size())); }
    void fail(int error) { check(mpk_fail_epoch(session_, error)); }
    void boost(bool on) { mpk_session_boost(session_, on); }
    bool wait(int64_t timeout_ns) {
        nb::gil_scoped_release release;
        return mpk_session_wait(session_, timeout_ns);
    }
    std::pair<uint64_t, uint64_t> saved() const {
        mpk_progress p;
        mpk_session_progress(session_, &p);
        return {p.blocks_saved, p.blocks_dirty};
    }
    nb::dict progress() const { /* the fields of mpickpt.snapshot.Progress */
        mpk_progress p;
        mpk_session_progress(session_, &p);
        nb::dict d;
        d["epoch"] = p.epoch;
        d["state"] = static_cast<int>(p.state);
        d["errno"] = p.error;
        d["blocks"] = p.blocks;
        d["blocks_dirty"] = p.blocks_dirty;
        d["blocks_saved"] = p.blocks_saved;
        d["blocks_copied"] = p.blocks_copied;
        d["bytes_written"] = p.bytes_written;
        d["bytes_waiting"] = p.bytes_waiting;
        d["bytes_urgent"] = p.bytes_urgent;
        d["blocked_seconds"] = p.blocked_ns / 1e9;
        d["drain_seconds"] = p.drain_ns / 1e9;
        d["stall_seconds"] = p.stall_ns / 1e9;
        d["fault_seconds"] = p.fault_ns / 1e9;
        d["faults"] = p.faults;
        d["direct"] = p.direct != 0;
        bool torn = p.torn_region >= 0;
        d["torn"] = torn ? nb::object(nb::int_(p.torn_region)) : nb::object(nb::none());
        d["channels_pending"] = p.channels_pending != 0;
        bool untracked = p.untracked_region >= 0;
        d["untracked"] = untracked ? nb::object(nb::make_tuple(p.untracked_region, p.untracked_offset)) : nb::object(nb::none());
        return d;
    }

  private:
    static int ask(void *self, size_t taken) {
        nb::gil_scoped_acquire hold;
        try {
            return nb::cast<bool>(static_cast<Session *>(self)->may_(taken));
        } catch (nb::python_error &error) {
            error.discard_as_unraisable("mpickpt: before memory is taken");
            return 0;
        }
    }

    unsigned flags_;
    mpk_session *session_ = nullptr;
    nb::object may_ = nb::none();
    std::vector<bytes_array> kept_; // the arrays live as long as their pages are watched
};

class Loader {
  public:
    Loader(const std::string &path, size_t block_bytes) : block_bytes_(block_bytes) {
        check(mpk_loader_create(&loader_, path.c_str(), block_bytes), path.c_str());
    }
    ~Loader() { close(); }
    Loader(const Loader &) = delete;
    Loader &operator=(const Loader &) = delete;

    memory_array map(uint64_t offset, size_t bytes, checksum_array checksums) {
        if (checksums.size() < (bytes + block_bytes_ - 1) / block_bytes_)
            throw nb::value_error("there are fewer checksums than blocks");
        void *memory = nullptr;
        check(mpk_loader_map(open(), offset, bytes, checksums.data(), &memory));
        kept_.push_back(own(memory, bytes));
        return kept_.back();
    }
    void boost(bool on) { mpk_loader_boost(open(), on); }
    bool wait(int64_t timeout_ns) {
        mpk_loader *loader = open();
        bool loaded;
        {
            nb::gil_scoped_release release;
            loaded = mpk_loader_wait(loader, timeout_ns);
        }
        if (loaded) kept_.clear();
        return loaded;
    }
    nb::dict progress() const {
        mpk_loading p;
        mpk_loader_progress(open(), &p);
        nb::dict d;
        d["bytes"] = p.bytes;
        d["bytes_loaded"] = p.bytes_loaded;
        d["corrupt"] = p.is_corrupt ? nb::object(nb::make_tuple(p.part, p.block)) : nb::object(nb::none());
        d["errno"] = p.error;
        return d;
    }
    void close() {
        {
            nb::gil_scoped_release release;
            mpk_loader_destroy(loader_);
        }
        loader_ = nullptr;
        kept_.clear();
    }

  private:
    mpk_loader *open() const {
        if (!loader_) throw nb::value_error("the loader is closed");
        return loader_;
    }

    mpk_loader *loader_ = nullptr;
    size_t block_bytes_;
    std::vector<memory_array> kept_; // memory lives as long as it is loaded into
};

NB_MODULE(_native, m) {
    m.doc() = "The native core of mpickpt; use mpickpt.snapshot.";
    m.def("allocate", &allocate, "nbytes"_a, "huge"_a);
    m.def("crc32c", &crc32c, "data"_a.noconvert(), "value"_a = 0);
    m.def("reads_repeated", &reads_repeated);
    m.def("read_blocks", &read_blocks, "path"_a, "offset"_a, "out"_a.noconvert(), "block_bytes"_a,
          "checksums"_a.noconvert(), "direct"_a);
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
    m.attr("RECORD_BYTES") = sizeof(mpk_record);
#ifdef MPICKPT_CHECKS
    m.attr("CHECKS") = true;
#else
    m.attr("CHECKS") = false;
#endif
    nb::dict offsets;
#define FIELD(name) offsets[#name] = offsetof(mpk_record, name)
    FIELD(magic), FIELD(state), FIELD(rank), FIELD(epoch), FIELD(step), FIELD(run), FIELD(digest);
    FIELD(objects_bytes), FIELD(objects_crc), FIELD(objects_spilled), FIELD(cut_time_ns), FIELD(blocked_ns);
    offsets["errno"] = offsetof(mpk_record, error); // errno is a macro in C
    FIELD(drain_ns), FIELD(bytes_written), FIELD(blocks_copied), FIELD(stall_ns), FIELD(bytes_waiting);
    FIELD(channels_bytes), FIELD(channels_crc), FIELD(channels_spilled), FIELD(crc);
#undef FIELD
    m.attr("RECORD_OFFSETS") = offsets;
    nb::class_<Session>(m, "Session")
        .def(nb::init<bool, bool>(), "direct"_a, "predict"_a)
        .def("add", &Session::add, "data"_a.noconvert(), "owned"_a)
        .def("ask_before_taking", &Session::ask_before_taking, "may"_a.none())
        .def("look_up", &Session::look_up)
        .def("seal", &Session::seal, "block_bytes"_a, "pool_bytes"_a)
        .def("resume", &Session::resume, "path"_a, "record_offset"_a, "checksum_offsets"_a, "epoch"_a)
        .def("unseal", &Session::unseal)
        .def("cut", &Session::cut, nb::kw_only(), "path"_a, "epoch"_a, "step"_a, "rank"_a, "run"_a, "digest"_a,
             "data_offsets"_a, "checksum_offsets"_a, "record_offset"_a, "objects"_a, "objects_offset"_a,
             "spill_path"_a, "channels_follow"_a, "channels_offset"_a, "channels_room"_a, "channels_spill_path"_a)
        .def("add_channels", &Session::add_channels, "data"_a)
        .def("fail", &Session::fail, "errno"_a)
        .def("boost", &Session::boost, "on"_a)
        .def("wait", &Session::wait, "timeout_ns"_a)
        .def("set_stall_limit", &Session::set_stall_limit, "seconds"_a, "text"_a)
        .def("give_up", &Session::give_up)
        .def("calls", &Session::calls)
        .def("saved", &Session::saved)
        .def("progress", &Session::progress);
    nb::class_<Loader>(m, "Loader")
        .def(nb::init<const std::string &, size_t>(), "path"_a, "block_bytes"_a)
        .def("map", &Loader::map, "offset"_a, "nbytes"_a, "checksums"_a.noconvert())
        .def("boost", &Loader::boost, "on"_a)
        .def("wait", &Loader::wait, "timeout_ns"_a)
        .def("progress", &Loader::progress)
        .def("close", &Loader::close);
}
