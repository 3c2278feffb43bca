"""Clients for `benchmarks.soak`, as Locust runs them: pictures in every way, and what is none.

An answer that is not what it must be counts as a failure. The transactions that clients were told
are written into the file REGRAFT_LOAD_IDS.
"""

import itertools
import os
from pathlib import Path

from locust import FastHttpUser, between, task

PATH = "/v1/predictions"
PICTURES = [path.read_bytes() for path in sorted(Path(os.environ["REGRAFT_LOAD"]).iterdir())]
KEYS = os.environ["REGRAFT_LOAD_KEYS"].split(",")
NEXT, NEXT_KEY, NUMBER = itertools.cycle(PICTURES), itertools.cycle(KEYS), itertools.count()
TOLD = Path(os.environ["REGRAFT_LOAD_IDS"]).open("a")  # noqa: SIM115  (as long as the clients)
JPEG = {"Content-Type": "image/jpeg"}


class Client(FastHttpUser):
    """Somebody who sends now this and now that, and rests a little."""

    wait_time = between(0, 0.05)

    def ask(self, name: str, status: int, **request: object) -> None:
        """Send it and look whether it is answered as it must be."""
        with self.client.post(PATH, name=name, catch_response=True, **request) as answer:
            if answer.status_code != status:
                answer.failure(f"{answer.status_code} instead of {status}: {answer.text}")
            else:
                answer.success()  # Locust takes a refusal that must come for a failure
            if answer.status_code == status == 200:
                TOLD.writelines(f"{one['id']}\n" for one in answer.json()["predictions"])
                TOLD.flush()

    @task(20)
    def one(self) -> None:
        """A picture as the body."""
        self.ask("picture", 200, data=next(NEXT), headers=JPEG)

    @task(3)
    def named(self) -> None:
        """A named request, sent twice: one answer, one row."""
        more = JPEG | {"Idempotency-Key": f"{os.getpid()}-{next(NUMBER)}"}
        body = next(NEXT)
        self.ask("named", 200, data=body, headers=more)
        self.ask("again", 200, data=body, headers=more)

    @task(3)
    def stored(self) -> None:
        """An object of S3."""
        self.ask("key", 200, json={"keys": [next(NEXT_KEY)]})

    @task(2)
    def explained(self) -> None:
        """A picture and where the version looked."""
        self.ask("picture", 200, data=next(NEXT), headers=JPEG, params={"explain": "true"})

    @task(2)
    def nothing(self) -> None:
        """Half a picture."""
        self.ask("nothing", 422, data=next(NEXT)[:2000], headers=JPEG)
