// mpk_copier for Python: a thread runs it without the interpreter lock, another one stops it.
#include "binding.h"

class Copier {
  public:
    Copier() { check(mpk_copier_create(&copier_)); }
    ~Copier() { mpk_copier_destroy(copier_); }
    Copier(const Copier &) = delete;
    Copier &operator=(const Copier &) = delete;

    void run(const std::string &from, const std::string &to) {
        int result;
        {
            nb::gil_scoped_release release;
            result = mpk_copier_run(copier_, from.c_str(), to.c_str());
        }
        check(result, to.c_str());
    }
    void stop() { mpk_copier_stop(copier_); }
    uint64_t copied() const { return mpk_copier_bytes(copier_); }

  private:
    mpk_copier *copier_ = nullptr;
};

void bind_copier(nb::module_ &m) {
    nb::class_<Copier>(m, "Copier")
        .def(nb::init<>())
        .def("run", &Copier::run, "source"_a, "target"_a)
        .def("stop", &Copier::stop)
        .def("copied", &Copier::copied);
}
