"""What ssh is elsewhere: `reach.py SOCKET [OPTIONS] HOST WORDS...` runs a command on a host of a cluster, with our open files.

Options are passed over. The words are joined and given to a shell with a login's few variables, as ssh does; `--exec HOST WORDS...`
keeps the words, the environment and the folder. Ends with the command's status. `--off HOST` takes its power away.
"""

import json
import os
import socket
import sys

path, *words = sys.argv[1:]
first = words[0]
while words[0].startswith("-"):
    del words[0]
host, *words = words
request = {"host": host, "shell": " ".join(words)}
if first == "--off":
    request = {"host": host, "off": True}
if first == "--exec":
    request = {"host": host, "command": words, "environment": dict(os.environ), "folder": os.getcwd()}
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
    link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)  # a request is one packet
    link.connect(path)
    socket.send_fds(link, [json.dumps(request).encode()], [0, 1, 2])
    answer = link.recv(100)
if first != "--off":
    sys.exit(int(answer) if answer else f"{host} does not answer")
