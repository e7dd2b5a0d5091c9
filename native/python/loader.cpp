// mpk_loader for Python. Memory that is loaded into lives as long as that takes.
#include "binding.h"

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

void bind_loader(nb::module_ &m) {
    nb::class_<Loader>(m, "Loader")
        .def(nb::init<const std::string &, size_t>(), "path"_a, "block_bytes"_a)
        .def("map", &Loader::map, "offset"_a, "nbytes"_a, "checksums"_a.noconvert())
        .def("boost", &Loader::boost, "on"_a)
        .def("wait", &Loader::wait, "timeout_ns"_a)
        .def("progress", &Loader::progress)
        .def("close", &Loader::close);
}
