"""Clients for `benchmarks.serving`, as Locust runs them: each sends pictures without a pause.

    locust -f benchmarks/clients.py --headless --host http://127.0.0.1:PORT -u 16 -t 10s --json

REGRAFT_LOAD names a folder of JPEGs, and REGRAFT_LOAD_PATH where they are sent.
"""

import itertools
import os
from pathlib import Path

from locust import FastHttpUser, constant, task

PATH = os.environ["REGRAFT_LOAD_PATH"]
FORM = {"Content-Type": "multipart/form-data; boundary=picture"}
HEAD = (
    b'--picture\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n'
    b"Content-Type: image/jpeg\r\n\r\n"
)
NEXT = itertools.cycle(
    HEAD + path.read_bytes() + b"\r\n--picture--\r\n"
    for path in sorted(Path(os.environ["REGRAFT_LOAD"]).iterdir())
)


class Client(FastHttpUser):
    """Sends one picture after the other, each in a form, which all contenders take."""

    wait_time = constant(0)

    @task
    def ask(self) -> None:
        """Wait for one answer."""
        self.client.post(PATH, data=next(NEXT), headers=FORM)
