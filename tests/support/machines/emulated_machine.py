"""An emulated machine with several sockets and NUMA nodes that runs shell commands on a real Linux kernel.

It sees this machine's files (what it writes stays in its own memory), so the same virtual environment runs in it. Its CPUs have
AVX2 and no AVX-512. Placement, binding, page locality and errors are as on hardware; time means nothing.
KVM runs it where /dev/kvm boots a kernel of Debian's, and an emulator of instructions, ten times slower, elsewhere.

Needs Debian's qemu-system-x86, busybox-static, cpio, kmod and numactl, and fetches Debian's kernel package once into the cache
folder.
"""

import base64
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from support.commands import SCRIPTS

TOOLS = ("qemu-system-x86_64", "busybox", "cpio", "modprobe", "depmod", "apt-get", "dpkg", "numactl")
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
# A third less work for the emulator: without ERMS the kernel clears and copies pages by words, which are emulated one by one.
# Pages of four levels instead of five, and no switching of access rights at each copy between a process and the kernel: a sixth.
# Without AVX-512F there is none of AVX-512, which KVM would pass on and the emulator does not have.
CPU = "max,-erms,-fsrm,-la57,-smap,-smep,-pku,-umip,-avx512f"
BOOT_SECONDS = 90  # a kernel is up after ten to twenty; one in many never is, and the machine is started again
COMMAND_SECONDS, MACHINE_SECONDS = 900, 2400  # after which one of its commands, or all of it, hangs: other tests run beside it
BOOTS = 3
KVM_SECONDS = 15  # a kernel is up after one or two; one that is not (KVM inside a guest may emulate it all) is emulated as well
OPTIONS = (
    "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable clocksource=tsc "
    "init_on_alloc=0 audit=0 lsm= randomize_kstack_offset=off"
)
UP = "the machine is up"  # what its console says then
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "numatp-test-kernel"

# The first process: mounts the host's files below a layer in memory and runs the command there.
INIT = """#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in /modules/*; do insmod $module; done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,cache=loose,ro host /host || poweroff -f
mount -t tmpfs layer /layer; mkdir -p /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work overlay /new || poweroff -f
for folder in proc sys dev; do mount --move /$folder /new/$folder; done
mkdir -p /new/dev/shm /new/dev/pts
mount -t tmpfs shm /new/dev/shm; mount -t devpts pts /new/dev/pts; mount -t tmpfs run /new/run
mkdir -p /new/sys/fs/cgroup; mount -t cgroup2 cgroup /new/sys/fs/cgroup
ifconfig lo 127.0.0.1 up
cp /command /new/tmp/numatp-command
chroot /new /bin/bash /tmp/numatp-command
poweroff -f
"""


@dataclass(frozen=True)
class Result:
    status: int
    stdout: str
    stderr: str


said = []  # what the test report tells of the machines that ran


def missing():
    """Why there can be no such machine here, or nothing."""
    absent = [tool for tool in TOOLS if not shutil.which(tool)]
    if absent:
        return f"no {', '.join(absent)} (Debian: apt-get install qemu-system-x86 busybox-static cpio kmod numactl)"
    if not _kernel() and not _fetch_kernel():
        return "Debian's kernel package cannot be downloaded"
    return ""


def _kernel():
    return next(iter(CACHE.glob("boot/vmlinuz-*")), None)


def _fetch_kernel():
    depends = subprocess.run(["apt-cache", "depends", "linux-image-amd64"], capture_output=True, text=True, check=False).stdout
    package = re.search(r"Depends: (linux-image-\S+)", depends)
    if not package:
        return False
    with tempfile.TemporaryDirectory() as folder:
        got = subprocess.run(["apt-get", "download", package[1]], cwd=folder, capture_output=True, check=False)
        files = list(Path(folder).glob("*.deb"))
        if got.returncode or not files:
            return False
        subprocess.run(["dpkg", "-x", files[0], CACHE], check=True)
    subprocess.run(["depmod", "-b", CACHE, _version()], check=True)
    return True


def _version():
    return next((CACHE / "lib" / "modules").iterdir()).name


@cache
def _accelerator():
    """(option of qemu, why it is that one)."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg,thread=multi", "instructions emulated: /dev/kvm cannot be opened here"
    modules = Path("/sys/module")
    if (modules / "kvm").exists() and not any((modules / name).exists() for name in ("kvm_intel", "kvm_amd")):
        return (
            "tcg,thread=multi",
            "instructions emulated: KVM does without the processor's virtualisation here, and boots no usual kernel",
        )
    with tempfile.TemporaryDirectory() as folder:
        initrd = Path(folder) / "initrd"
        _write_initrd(initrd, {"up": "true"})
        shape = ["-smp", "1", "-m", "512M"]
        if "result up 0" in _console("kvm", shape, initrd, KVM_SECONDS):
            return "kvm", "KVM"
    return "tcg,thread=multi", f"instructions emulated: KVM is here, but boots no kernel within {KVM_SECONDS} s"


def _console(accelerator, shape, initrd, seconds):
    """What a machine of that shape says until it is off, or has had its time, or is not up when it should be."""
    command = [
        "qemu-system-x86_64", "-accel", accelerator, "-cpu", CPU, *shape,
        "-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
        "-kernel", str(_kernel()), "-initrd", str(initrd), "-append", OPTIONS,
        "-nographic", "-no-reboot",
    ]  # fmt: skip
    with tempfile.TemporaryFile() as console:
        machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                machine.wait(min(seconds, BOOT_SECONDS))
            if UP in _so_far(console):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    machine.wait(max(seconds - BOOT_SECONDS, 0))
        finally:
            machine.kill()
            machine.wait()
        return _so_far(console)


def _so_far(console):
    """What stands in the file, read without moving the end at which the machine writes."""
    return os.pread(console.fileno(), os.fstat(console.fileno()).st_size, 0).decode(errors="replace")


def _write_initrd(path, commands):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("bin", "proc", "sys", "dev", "modules", "host", "layer", "new"):
            (root / name).mkdir()
        shutil.copy(shutil.which("busybox"), root / "bin")
        listed = [
            line.split()[1]
            for module in MODULES
            for line in subprocess.run(
                ["modprobe", "-d", CACHE, "-S", _version(), "--show-depends", module], capture_output=True, text=True, check=True
            ).stdout.splitlines()
            if line.startswith("insmod")
        ]
        for place, module in enumerate(dict.fromkeys(listed)):
            shutil.copy(module, root / "modules" / f"{place:02}-{Path(module).name}")
        (root / "init").write_text(INIT)
        (root / "init").chmod(0o755)
        (root / "command").write_text(_script(commands))
        names = "\n".join(str(found.relative_to(root)) for found in [root, *root.rglob("*")])
        pack = ["cpio", "-o", "-H", "newc", "--quiet"]
        path.write_bytes(subprocess.run(pack, cwd=root, input=names.encode(), capture_output=True, check=True).stdout)


def forked(script, arguments, **environ):
    """A command that is a script of tests/support/scripts, or numatp.cli.main, in a fork of one process for all (serve.py): a
    start would take longer than its work, and is not asked for.
    """
    return {"script": script, "arguments": shlex.split(arguments), "environ": os.environ | environ}


def _script(commands):
    """Runs each command with a time limit and writes one line about it: name, status and output, coded against line ends."""
    kept = [f"export {name}={shlex.quote(value)}" for name, value in os.environ.items() if re.fullmatch(r"[A-Z_a-z0-9]+", name)]
    # The second process need not compile what the first has: seconds in emulation.
    lines = [f"echo {UP}", *kept, "unset PYTHONDONTWRITEBYTECODE", f"cd {shlex.quote(os.getcwd())}"]
    if any(isinstance(command, dict) for command in commands.values()):
        # Both ends of both pipes are opened in one order.
        lines += [
            "mkfifo /tmp/cases /tmp/ended",
            f"{sys.executable} {SCRIPTS / 'serve.py'} --find-kernels-later </tmp/cases >/tmp/ended &",
        ]
        lines += ["exec 8>/tmp/cases 9</tmp/ended"]
    for name, command in commands.items():
        if isinstance(command, dict):
            case = command | {"folder": os.getcwd(), "out": "/tmp/numatp-out", "err": "/tmp/numatp-err"}
            started = f"echo {shlex.quote(json.dumps(case))} >&8; read -t {COMMAND_SECONDS} status <&9 || status=124"
        else:
            limited = f"timeout -k 5 {COMMAND_SECONDS} bash -c {shlex.quote(command)}"
            started = f"{limited} >/tmp/numatp-out 2>/tmp/numatp-err </dev/null; status=$?"
        lines += [
            "begin=$SECONDS",
            started,
            f'echo; echo "result {name} $status $((SECONDS - begin)) $(base64 -w0 /tmp/numatp-out)@$(base64 -w0 /tmp/numatp-err)"',
        ]
    return "\n".join(lines) + "\n"


def run(commands, sockets=2, nodes_per_socket=1, cores_per_node=2, mib_per_node=2048, memory_only=0, seconds=MACHINE_SECONDS):
    """{name: shell command, or what forked() gives} to {name: Result}, one after another in one boot; a name is one word.

    memory_only: so many further nodes without CPUs.
    """
    nodes, cores = sockets * nodes_per_socket, cores_per_node
    numa = []
    for node in range(nodes + memory_only):
        cpus = f",cpus={node * cores}-{node * cores + cores - 1}" if node < nodes else ""
        numa += ["-object", f"memory-backend-ram,id=m{node},size={mib_per_node}M"]
        numa += ["-numa", f"node,nodeid={node}{cpus},memdev=m{node}"]
    for one in range(nodes + memory_only):
        for other in range(one + 1, nodes + memory_only):
            near = other < nodes and one // nodes_per_socket == other // nodes_per_socket
            numa += ["-numa", f"dist,src={one},dst={other},val={12 if near else 21}"]
    shape = ["-m", f"{mib_per_node * (nodes + memory_only)}M", *numa]
    shape += ["-smp", f"{nodes * cores},sockets={sockets},cores={nodes_per_socket * cores},threads=1"]
    accelerator, why = _accelerator()
    with tempfile.TemporaryDirectory() as folder:
        initrd = Path(folder) / "initrd"
        _write_initrd(initrd, commands)
        begin = time.monotonic()
        for _ in range(BOOTS):
            text = _console(accelerator, shape, initrd, seconds)  # commands that are too late will be missed below
            if UP in text:
                break
        whole = time.monotonic() - begin
    results, times = {}, []
    for name, status, took, out, err in re.findall(r"^result (\S+) (\d+) (\d+) ([\w+/=]*)@([\w+/=]*)\r?$", text, re.MULTILINE):
        results[name] = Result(int(status), *(base64.b64decode(part).decode(errors="replace") for part in (out, err)))
        times.append(f"{name} {took}")
    said.append(f"{sockets} sockets, {nodes + memory_only} nodes, {why}: {whole:.0f} s ({', '.join(times)})")
    lost = commands.keys() - results.keys()
    assert not lost, f"nothing came back of {', '.join(lost)}; the console said: {text[-20000:]}"
    return results
