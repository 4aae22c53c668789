"""The first process of a cluster: joins its hosts by a bridge, and starts there what reach.py asks for.

    switch.py FOLDER NAME=CPUS...

Runs in network, mount and process namespaces of its own, so when it ends the kernel ends every process of the cluster, and their
networks and mounts with them. It ends when its standard input does: when whoever started it has gone, however that was.
"""

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

NETWORK = "198.18.0"  # of the range for benchmarks (RFC 2544): no real host has such an address
SPACES = ("--net", "--uts", "--ipc", "--mount", "--pid")
off = set()  # first processes of hosts whose power is off: nobody is told anything of them any more


def first_process(folder, name):
    """The process that is a new host's number 1."""
    script = Path(__file__).with_name("host.sh")
    words = ["unshare", *SPACES, "--fork", "--kill-child", "sh", script, name, folder]
    outside = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if outside.stdout.readline() != "ready\n":
        sys.exit(f"host {name} could not be made")
    return int(Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text())


def in_network(pid):
    return ["nsenter", "--target", str(pid), "--net", "ip"]


def join(number, name, pid):
    """The host's eth0, at the other end of a port of the bridge."""
    for words in (
        ["ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", str(pid)],
        ["ip", "link", "set", f"to-{name}", "master", "bridge", "up"],
        [*in_network(pid), "address", "add", f"{NETWORK}.{number}/24", "dev", "eth0"],
        [*in_network(pid), "link", "set", "eth0", "up"],
    ):
        subprocess.run(words, check=True)


def answer(link, folder, hosts):
    """One request: starts the command, tells its status, and ends it when the one who asked hangs up."""
    with link, contextlib.suppress(OSError):
        text, files, _, _ = socket.recv_fds(link, 1 << 20, 3)
        request = json.loads(text)
        pid, cpus = hosts[request["host"]]
        if request.get("off"):
            off.add(pid)
            subprocess.run([*in_network(pid), "link", "set", "eth0", "down"], check=True)
            os.kill(pid, 9)
            return
        command = request.get("command") or ["sh", "-c", request["shell"]]
        login = {name: os.environ[name] for name in ("HOME", "PATH", "USER", "SHELL", "LANG") if name in os.environ}
        environment = request.get("environment", login) | {"TMPDIR": f"{folder}/own/tmp"}
        words = ["nsenter", "--target", str(pid), *SPACES, "taskset", "--cpu-list", cpus]
        words += ["env", "--chdir", request.get("folder", "/"), *command]
        started = subprocess.Popen(
            words, stdin=files[0], stdout=files[1], stderr=files[2], env=environment, start_new_session=True
        )  # fmt: skip
        for file in files:
            os.close(file)
        ended = os.pidfd_open(started.pid)
        if link in select.select([ended, link], [], [])[0]:
            os.killpg(started.pid, 9)
        os.close(ended)
        status = started.wait()
        if pid in off:
            threading.Event().wait()
        link.send(str(status if status >= 0 else 128 - status).encode())


def main(folder, *wanted):
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "link", "add", "bridge", "type", "bridge"], check=True)
    subprocess.run(["ip", "link", "set", "bridge", "up"], check=True)
    names = [name.split("=")[0] for name in wanted]
    lines = ["127.0.0.1 localhost", *(f"{NETWORK}.{number} {name}" for number, name in enumerate(names, 1))]
    Path(folder, "hosts").write_text("\n".join(lines) + "\n")
    hosts = {}
    for number, (name, cpus) in enumerate((host.split("=") for host in wanted), 1):
        hosts[name] = first_process(folder, name), cpus
        join(number, name, hosts[name][0])
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        server.bind(f"{folder}/socket")
        server.listen(100)
        print("ready", flush=True)
        while True:
            ready = select.select([server, sys.stdin], [], [])[0]
            if sys.stdin in ready:
                break
            threading.Thread(target=answer, args=(server.accept()[0], folder, hosts), daemon=True).start()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


main(*sys.argv[1:])
