# A recipe for a package repository of yours, to build a checkout:
#
#     spack repo create my-repo && spack repo add my-repo      copy this file into its folder packages/py_mpickpt
#     spack env create mpickpt && spack env activate mpickpt
#     spack add py-mpickpt && spack develop --path CHECKOUT py-mpickpt@0.1.0 && spack install

from spack_repo.builtin.build_systems.python import PythonPackage

from spack.package import *


class PyMpickpt(PythonPackage):
    """Checkpoints of running MPI programs: saved while they compute, restarted from one HDF5 file."""

    license("BSD-3-Clause")

    version("0.1.0")  # RELEASING.md: a release adds its address and sha256

    variant("report", default=False, description="Draw the pages of mpickpt report")

    depends_on("c", type="build")
    depends_on("cxx", type="build")
    depends_on("py-scikit-build-core@0.10:", type="build")
    depends_on("py-nanobind@2.4:", type="build")
    depends_on("cmake@3.18:", type="build")

    depends_on("python@3.11:", type=("build", "link", "run"))
    depends_on("py-numpy@1.26:", type="run")
    depends_on("py-h5py@3.12.1:", type="run")
    depends_on("py-mpi4py@4.1:", type="run")
    depends_on("py-rich@13:", type="run")
    depends_on("py-matplotlib@3.8:", type="run", when="+report")

    # The snapshotter handles page faults and rewrites entries of ELF files.
    conflicts("platform=darwin")
    conflicts("platform=windows")
    requires("target=x86_64:", "target=aarch64:", policy="one_of")
