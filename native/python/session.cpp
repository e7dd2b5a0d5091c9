// mpk_session for Python. Arrays that are added live as long as their pages may be written to.
#include <cstring>

#include "binding.h"

class Session {
  public:
    Session(bool direct, bool predict) : flags_((direct ? 0 : MPK_SESSION_BUFFERED) | (predict ? 0 : MPK_SESSION_BY_ADDRESS)) {
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
    // `plan`: a mpickpt.snapshot.CutPlan. spills: its objects go into the file for those that do not fit.
    void cut(nb::object plan, bool spills) {
        nb::object target = plan.attr("target"), offsets = target.attr("offsets");
        auto path = text(target, "path").value();
        auto data_offsets = nb::cast<std::vector<uint64_t>>(offsets.attr("arrays"));
        auto checksum_offsets = nb::cast<std::vector<uint64_t>>(offsets.attr("checksums"));
        auto objects = nb::cast<nb::bytes>(plan.attr("objects")), digest = nb::cast<nb::bytes>(target.attr("digest"));
        auto spill = spills ? text(target, "spill") : std::nullopt, channels_spill = text(target, "channels_spill");
        mpk_plan native = {};
        if (data_offsets.size() != kept_.size() || checksum_offsets.size() != kept_.size())
            throw nb::value_error("as many offsets as regions are needed");
        if (digest.size() != sizeof native.digest) throw nb::value_error("a digest has 32 bytes");
        native.path = path.c_str();
        native.slot_follows = nb::cast<bool>(target.attr("follows"));
        native.data_offsets = data_offsets.data();
        native.checksum_offsets = checksum_offsets.data();
        native.record_offset = nb::cast<uint64_t>(offsets.attr("record"));
        native.objects = objects.c_str();
        native.objects_bytes = objects.size();
        native.objects_offset = nb::cast<uint64_t>(offsets.attr("objects"));
        native.spill_path = spill ? spill->c_str() : nullptr;
        native.channels_follow = nb::cast<bool>(target.attr("channels_follow"));
        native.channels_offset = nb::cast<uint64_t>(offsets.attr("channels"));
        native.channels_room = nb::cast<size_t>(offsets.attr("channels_room"));
        native.channels_spill_path = channels_spill ? channels_spill->c_str() : nullptr;
        auto files = nb::cast<std::vector<int>>(plan.attr("files"));
        native.files = files.data();
        native.n_files = files.size();
        native.epoch = nb::cast<uint64_t>(plan.attr("epoch"));
        native.step = nb::cast<uint64_t>(plan.attr("step"));
        native.run = nb::cast<uint64_t>(target.attr("run"));
        native.rank = nb::cast<uint32_t>(target.attr("rank"));
        std::memcpy(native.digest, digest.c_str(), sizeof native.digest);
        check(mpk_cut(session_, &native), path.c_str()); // keeps the lock: no other Python thread runs at the cut
    }
    void add_slot(uint64_t start) { check(mpk_add_slot(session_, start)); }
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
        d["unsynced"] = p.unsynced_file >= 0 ? nb::object(nb::int_(p.unsynced_file)) : nb::object(nb::none());
        d["channels_pending"] = p.channels_pending != 0;
        bool untracked = p.untracked_region >= 0;
        d["untracked"] = untracked ? nb::object(nb::make_tuple(p.untracked_region, p.untracked_offset))
                                   : nb::object(nb::none());
        return d;
    }

  private:
    static std::optional<std::string> text(nb::object from, const char *name) {
        nb::object found = from.attr(name);
        if (found.is_none()) return std::nullopt;
        return nb::cast<std::string>(nb::str(found));
    }

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

void bind_session(nb::module_ &m) {
    nb::class_<Session>(m, "Session")
        .def(nb::init<bool, bool>(), "direct"_a, "predict"_a)
        .def("add", &Session::add, "data"_a.noconvert(), "owned"_a)
        .def("ask_before_taking", &Session::ask_before_taking, "may"_a.none())
        .def("look_up", &Session::look_up)
        .def("seal", &Session::seal, "block_bytes"_a, "pool_bytes"_a)
        .def("resume", &Session::resume, "path"_a, "record_offset"_a, "checksum_offsets"_a, "epoch"_a)
        .def("unseal", &Session::unseal)
        .def("cut", &Session::cut, "plan"_a, "spills"_a)
        .def("add_slot", &Session::add_slot, "start"_a)
        .def("add_channels", &Session::add_channels, "data"_a)
        .def("fail", &Session::fail, "errno"_a)
        .def("boost", &Session::boost, "on"_a)
        .def("wait", &Session::wait, "timeout_ns"_a)
        .def("set_stall_limit", &Session::set_stall_limit, "seconds"_a, "text"_a)
        .def("give_up", &Session::give_up)
        .def("calls", &Session::calls)
        .def("saved", &Session::saved)
        .def("progress", &Session::progress);
}
