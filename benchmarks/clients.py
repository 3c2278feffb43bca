"""Clients for `benchmarks.serving`, as Locust runs them: each sends pictures without a pause.

    locust -f benchmarks/clients.py --headless --host http://127.0.0.1:PORT -u 16 -t 10s --json

REGRAFT_LOAD names a folder of JPEGs, and REGRAFT_LOAD_PATH where they are sent.
"""

import itertools
import os
from pathlib import Path

from locust import FastHttpUser, constant, task

PICTURES = [path.read_bytes() for path in sorted(Path(os.environ["REGRAFT_LOAD"]).iterdir())]
PATH = os.environ["REGRAFT_LOAD_PATH"]
NEXT = itertools.cycle(PICTURES)


class Client(FastHttpUser):
    """Sends one picture after the other, each as the body of its request."""

    wait_time = constant(0)

    @task
    def ask(self) -> None:
        """Wait for one answer."""
        self.client.post(PATH, data=next(NEXT), headers={"Content-Type": "image/jpeg"})
