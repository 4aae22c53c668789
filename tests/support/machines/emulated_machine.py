"""An emulated machine with several sockets and NUMA nodes that runs shell commands on a real Linux kernel.

It sees this machine's files (what it writes stays in its own memory), so the same virtual environment runs in it. Its CPUs have
AVX2 and no AVX-512. Placement, binding, page locality and errors are as on hardware; time means nothing.
KVM runs it where /dev/kvm boots a kernel of Debian's, and an emulator of instructions, ten times slower, elsewhere.

Needs Debian's qemu-system-x86, busybox-static, cpio and kmod, and fetches Debian's kernel package once into the cache
folder.
"""

import base64
import compileall
import contextlib
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import psutil
from support.commands import SCRIPTS
from support.machines import debian_kernel

import numatp

TOOLS = ("qemu-system-x86_64", "busybox", "cpio", "modprobe", "depmod", "apt-get", "dpkg")
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
# A third less work for the emulator: without ERMS the kernel clears and copies pages by words, which are emulated one by one.
# Pages of four levels instead of five, and no switching of access rights at each copy between a process and the kernel: a sixth.
# Without AVX-512F there is none of AVX-512, which KVM would pass on and the emulator does not have.
CPU = "max,-erms,-fsrm,-la57,-smap,-smep,-pku,-umip,-avx512f"
# One thread for all CPUs: one that waits in a loop gives way to the next, and takes no core from the tests beside it. That is a
# quarter less work, in the same time.
EMULATOR = "tcg,thread=single"
BOOT_SECONDS = 90  # a kernel is up after ten to twenty; one in many never is, and the machine is started again
COMMAND_SECONDS, MACHINE_SECONDS = 900, 2400  # after which one of its commands, or all of it, hangs: other tests run beside it
BOOTS = 3
POLL_SECONDS = 0.1
KVM_SECONDS = 15  # a kernel is up after one or two; one that is not (KVM inside a guest may emulate it all) is emulated as well
OPTIONS = (
    "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable clocksource=tsc "
    "init_on_alloc=0 audit=0 lsm= randomize_kstack_offset=off cryptomgr.notests"
)
UP = "the machine is up"  # what its console says then
SEEN = rf"({UP}|^result \S+)"

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
        return f"no {', '.join(absent)} (Debian: apt-get install qemu-system-x86 busybox-static cpio kmod)"
    if not debian_kernel.path() and not debian_kernel.fetch():
        return "Debian's kernel cannot be downloaded or unpacked"
    return ""


@cache
def _accelerator():
    """(option of qemu, why it is that one)."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return EMULATOR, "instructions emulated: /dev/kvm cannot be opened here"
    modules = Path("/sys/module")
    if (modules / "kvm").exists() and not any((modules / name).exists() for name in ("kvm_intel", "kvm_amd")):
        return (
            EMULATOR,
            "instructions emulated: KVM does without the processor's virtualisation here, and boots no usual kernel",
        )
    with tempfile.TemporaryDirectory() as folder:
        initrd = Path(folder) / "initrd"
        _write_initrd(initrd, {"up": "true"})
        shape = ["-smp", "1", "-m", "512M"]
        if "result up 0" in _console("kvm", shape, initrd, KVM_SECONDS)[0]:
            return "kvm", "KVM"
    return EMULATOR, f"instructions emulated: KVM is here, but boots no kernel within {KVM_SECONDS} s"


def _console(accelerator, shape, initrd, seconds):
    """(what a machine of that shape says until it is off, or has had its time, or is not up when it should be; {UP and the names
    of its commands: the CPU seconds that it had taken when they were over}).
    """
    command = [
        "qemu-system-x86_64", "-accel", accelerator, "-cpu", CPU, *shape,
        "-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
        "-kernel", str(debian_kernel.path()), "-initrd", str(initrd), "-append", OPTIONS,
        "-nographic", "-no-reboot",
    ]  # fmt: skip
    begin, before, spent = time.monotonic(), _ended_seconds(), {}
    with tempfile.TemporaryFile() as console:
        machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        try:
            process = psutil.Process(machine.pid)
            while machine.poll() is None:
                text, passed = _so_far(console), time.monotonic() - begin
                if passed > (seconds if UP in text else min(seconds, BOOT_SECONDS)):
                    break
                for name in re.findall(SEEN, text, re.MULTILINE):
                    spent.setdefault(name, _cpu_seconds(process))
                time.sleep(POLL_SECONDS)
        finally:
            machine.kill()
            machine.wait()
        text = _so_far(console)
        return text, dict.fromkeys(re.findall(SEEN, text, re.MULTILINE), _ended_seconds() - before) | spent


def _ended_seconds():
    """CPU seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _cpu_seconds(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return times.user + times.system
    return 0.0


def _so_far(console):
    """What stands in the file, read without moving the end at which the machine writes."""
    return os.pread(console.fileno(), os.fstat(console.fileno()).st_size, 0).decode(errors="replace")


def _write_initrd(path, commands):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("bin", "proc", "sys", "dev", "modules", "host", "layer", "new"):
            (root / name).mkdir()
        shutil.copy(shutil.which("busybox"), root / "bin")
        for place, module in enumerate(debian_kernel.modules(MODULES)):
            shutil.copy(module, root / "modules" / f"{place:02}-{module.name}")
        (root / "init").write_text(INIT)
        (root / "init").chmod(0o755)
        (root / "command").write_text(_script(commands))
        names = "\n".join(str(found.relative_to(root)) for found in [root, *root.rglob("*")])
        pack = ["cpio", "-o", "-H", "newc", "--quiet"]
        path.write_bytes(subprocess.run(pack, cwd=root, input=names.encode(), capture_output=True, check=True).stdout)


def forked(script, arguments, policy=None, cgroup=None, **environ):
    """A command that is a script of tests/support/scripts, or numatp.cli.main, in a fork of one process for all (serve.py): a
    start would take longer than its work, and is not asked for.

    policy: (mode, node) of its memory; cgroup: its control group's folder.
    """
    words = shlex.split(arguments)
    return {"script": script, "arguments": words, "environ": os.environ | environ, "policy": policy, "cgroup": cgroup}


def _script(commands):
    """Runs each command with a time limit and writes one line about it: name, status and output, coded against line ends."""
    kept = [f"export {name}={shlex.quote(value)}" for name, value in os.environ.items() if re.fullmatch(r"[A-Z_a-z0-9]+", name)]
    # The second process need not compile what the first has: seconds in emulation.
    lines = [f"echo {UP}", *kept, "unset PYTHONDONTWRITEBYTECODE", f"cd {shlex.quote(os.getcwd())}"]
    if any(isinstance(command, dict) for command in commands.values()):
        # Both ends of both pipes are opened in one order.
        lines += [
            "mkfifo /tmp/cases /tmp/ended",
            # One thread: numpy's library for matrices would start one for each CPU, which takes as long as all the rest.
            f"OPENBLAS_NUM_THREADS=1 {sys.executable} {SCRIPTS / 'serve.py'} --find-kernels-later </tmp/cases >/tmp/ended &",
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
            started,
            f'echo; echo "result {name} $status $(base64 -w0 /tmp/numatp-out)@$(base64 -w0 /tmp/numatp-err)"',
        ]
    return "\n".join(lines) + "\n"


def run(commands, sockets=2, nodes_per_socket=1, cores_per_socket=2, mib_per_node=2048, memory_only=0, seconds=MACHINE_SECONDS):
    """{name: shell command, or what forked() gives} to {name: Result}, one after another in one boot; a name is one word.

    memory_only: so many further nodes without CPUs.
    """
    nodes, cores, numa = sockets * nodes_per_socket, sockets * cores_per_socket, []
    for node in range(nodes + memory_only):
        cpus = f",cpus={node * cores // nodes}-{(node + 1) * cores // nodes - 1}" if node < nodes else ""
        numa += ["-object", f"memory-backend-ram,id=m{node},size={mib_per_node}M"]
        numa += ["-numa", f"node,nodeid={node}{cpus},memdev=m{node}"]
    for one in range(nodes + memory_only):
        for other in range(one + 1, nodes + memory_only):
            near = other < nodes and one // nodes_per_socket == other // nodes_per_socket
            numa += ["-numa", f"dist,src={one},dst={other},val={12 if near else 21}"]
    shape = ["-m", f"{mib_per_node * (nodes + memory_only)}M", *numa]
    shape += ["-smp", f"{cores},sockets={sockets},cores={cores_per_socket},threads=1"]
    accelerator, why = _accelerator()
    # What is compiled there is lost with the machine, and takes 5 s for each that starts anew.
    compileall.compile_dir(Path(numatp.__file__).parent, quiet=1)
    with tempfile.TemporaryDirectory() as folder:
        initrd = Path(folder) / "initrd"
        _write_initrd(initrd, commands)
        begin = time.monotonic()
        for _ in range(BOOTS):
            text, spent = _console(accelerator, shape, initrd, seconds)  # commands that are too late will be missed below
            if UP in text:
                break
        whole = time.monotonic() - begin
    results = {}
    for name, status, out, err in re.findall(r"^result (\S+) (\d+) ([\w+/=]*)@([\w+/=]*)\r?$", text, re.MULTILINE):
        results[name] = Result(int(status), *(base64.b64decode(part).decode(errors="replace") for part in (out, err)))
    times = [f"{name.split()[-1]} {after - before:.0f}" for (_, before), (name, after) in pairwise({"": 0, **spent}.items())]
    used = f"{whole:.0f} s, {max(spent.values(), default=0):.0f} s of CPU time ({', '.join(times)})"
    said.append(f"{sockets} sockets, {nodes + memory_only} nodes, {why}: {used}")
    lost = commands.keys() - results.keys()
    assert not lost, f"nothing came back of {', '.join(lost)}; the console said: {text[-20000:]}"
    return results
