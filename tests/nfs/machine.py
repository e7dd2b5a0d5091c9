"""A virtual machine with a kernel that serves and mounts NFS, and with the programs and files of this machine.

It sees the root file system read-only, below a layer in memory that takes its writes; ``/disk`` is an empty ext4. QEMU
emulates the processor (TCG), which needs no privileges and works everywhere, but is slow.
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
from pathlib import Path

KERNEL = Path(__file__).parents[2] / ".build" / "kernel"  # what `make test-nfs` puts there
PACKAGES = "qemu-system-x86 busybox-static cpio kmod iproute2 nfs-kernel-server"  # of Debian
TOOLS = ("qemu-system-x86_64", "busybox", "cpio", "modprobe", "mkfs.ext4", "ip", "nsenter", "rpc.nfsd", "mount.nfs4")
MODULES = ("virtio_pci", "virtio_blk", "9pnet_virtio", "9p", "overlay", "crc32c_generic", "crc32c-intel", "ext4")
MEMORY = "4G"
DISK_BYTES = 4 << 30

# The first process: mounts, then `run` below the root of this machine, and what that gave.
INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
for module in $(/bin/busybox cat /modules/order); do /bin/busybox insmod /modules/$module; done
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /lower
/bin/busybox mount -t tmpfs layer /layer
/bin/busybox mkdir /layer/upper /layer/work
/bin/busybox mount -t overlay -o lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work root /root
/bin/busybox mount -t proc proc /root/proc
/bin/busybox mount -t sysfs sys /root/sys
/bin/busybox mount -t devtmpfs dev /root/dev
/bin/busybox mkdir -p /root/dev/shm /root/dev/pts /root/disk /root/lib/modules
/bin/busybox mount -t tmpfs shm /root/dev/shm
/bin/busybox mount -t devpts pts /root/dev/pts
/bin/busybox mount -t tmpfs run /root/run
/bin/busybox mount -t ext4 /dev/vda /root/disk
/bin/busybox mount --bind /root{modules} /root/lib/modules
/bin/busybox ip link set lo up
/bin/busybox chroot /root /usr/bin/env -i HOME=/root PATH={path} /bin/bash {run}
echo "the machine's exit code: $?"
/bin/busybox poweroff -n -f
"""


def missing() -> str:
    """Say what this needs and is not there; empty if nothing is."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    tools = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    if tools:
        return f"no {', '.join(tools)} (apt-get install {PACKAGES})"
    return "" if list(KERNEL.glob("boot/vmlinuz-*")) else f"no kernel in {KERNEL}: make test-nfs puts one there"


def run(script: Path, folder: Path, seconds: float) -> tuple[int, str]:
    """Run a bash script in a machine that lives no longer than it.

    Parameters
    ----------
    script : pathlib.Path
        It runs as root, in the root file system.
    folder : pathlib.Path
        Takes the machine's disk and what it starts from.
    seconds : float
        The machine is killed after that time.

    Returns
    -------
    int, str
        The script's exit code, -1 if it did not come to its end; and what it wrote.
    """
    (kernel,) = KERNEL.glob("boot/vmlinuz-*")
    start, disk, log = folder / "initramfs", folder / "disk", folder / "log"
    _write_initramfs(start, kernel.name.removeprefix("vmlinuz-"), script)
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["/sbin/mkfs.ext4", "-q", "-F", disk], check=True)
    command = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", MEMORY]
    command += ["-nographic", "-no-reboot", "-nic", "none", "-kernel", str(kernel), "-initrd", str(start)]
    command += ["-append", "console=ttyS0 quiet panic=-1"]
    command += ["-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"]
    command += ["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]
    command += ["-drive", f"file={disk},if=virtio,format=raw,cache=none"]
    try:
        with log.open("wb") as out:
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=seconds, check=True)
    except subprocess.TimeoutExpired:
        pass
    finally:
        disk.unlink()
    told = log.read_text(errors="replace").replace("\r", "")
    _, found, code = told.rpartition("the machine's exit code: ")
    return (int(code.split()[0]) if found else -1), told


def _write_initramfs(path: Path, version: str, script: Path) -> None:
    """Pack what the machine starts with: busybox, the modules for the mounts, and INIT."""
    root = path.with_name("root")
    for name in ("bin", "dev", "proc", "lower", "layer", "root", "modules"):
        (root / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, root / "bin" / "busybox")
    order = []
    for module in MODULES:
        command = ["/sbin/modprobe", "-d", KERNEL, "-S", version, "--show-depends", module]
        for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
            kind, file = line.split()[:2]
            if kind == "insmod" and (name := Path(file).name) not in order:
                order.append(name)
                shutil.copy(file, root / "modules" / name)
    (root / "modules" / "order").write_text("\n".join(order))
    init = root / "init"
    path_there = os.environ["PATH"] + ":/usr/sbin:/sbin"
    init.write_text(INIT.format(modules=KERNEL / "lib" / "modules", path=path_there, run=script))
    init.chmod(0o755)
    names = "\n".join(str(p.relative_to(root)) for p in sorted(root.rglob("*")))
    packed = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, input=names.encode(), capture_output=True, check=True
    )
    path.write_bytes(gzip.compress(packed.stdout, 1))
    shutil.rmtree(root)
