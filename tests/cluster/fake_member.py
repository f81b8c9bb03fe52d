"""A stand-in for `python -m node`: serves /readyz on the member's API port, and fails the way its folder asks for."""

import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from cluster.topology import read_topology


class Ready(BaseHTTPRequestHandler):
    """Says yes to whatever is asked."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

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
    member = read_topology(config.parent / "../topology.toml").member(config.stem)
    HTTPServer((member.api_host, member.api_port), Ready).serve_forever()


main()
