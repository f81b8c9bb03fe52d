"""A stand-in for `python -m node`: serves /readyz on the member's API port, and fails the way its folder asks for."""

import ctypes
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from cluster.topology import read_topology


class Ready(BaseHTTPRequestHandler):
    """Says yes to whatever is asked."""

    body = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    config = Path(sys.argv[1])
    mood_file = config.parent / f"{config.stem}.mood"
    mood = mood_file.read_text() if mood_file.exists() else ""
    print(f"starting {config.stem}", flush=True)
    if mood == "dies":
        print("the disk is on fire", flush=True)
        sys.exit(3)
    if mood == "sleeps":
        time.sleep(60)
    if mood == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if mood == "works":  # as a gateway with workers
        child = subprocess.Popen(["sleep", "60"])
        config.with_suffix(".child").write_text(str(child.pid))
    topology = read_topology(config.parent / "../topology.toml")
    member = topology.member(config.stem)
    cluster_id = "another" if mood == "another" else topology.cluster_id
    Ready.body = json.dumps({"status": "ready", "member": member.name, "cluster_id": cluster_id}).encode()
    server = HTTPServer((member.api_host, member.api_port), Ready)
    if mood == "lingers":
        linger(server)
    server.serve_forever()


def linger(server: HTTPServer) -> None:
    """On SIGTERM the first thread ends, and another goes on for a while, as one does that is inside a disk sync."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=server.serve_forever).start()
    signal.sigwait({signal.SIGTERM})
    threading.Timer(LINGER_S, os._exit, (0,)).start()
    ctypes.CDLL(None).syscall(EXIT_THREAD, 0)


LINGER_S = 1.3
EXIT_THREAD = 60 if platform.machine() == "x86_64" else 93


main()
