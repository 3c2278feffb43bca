"""The embedded services: killed, raced, robbed of their ports, they come back with their data."""

import http.client
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest

from infra import embedded
from infra.database import Database
from infra.embedded import Addresses, EmbeddedError, ServiceState
from infra.settings import Settings
from infra.storage import Storage

ROOT = Path(__file__).resolve().parent.parent
AS_ROOT = os.geteuid() == 0
START = """
import json, sys
from pathlib import Path
from infra import embedded
from infra.settings import Settings
settings = Settings(state_dir=Path(sys.argv[1]))
embedded.addresses(settings)
print(json.dumps([state.pid for state in embedded.running(settings)]))
"""


def start_elsewhere(folder: Path, **options: object) -> "subprocess.Popen[str]":
    """Start the services of a folder from another process, which prints their pids and ends."""
    process: subprocess.Popen[str] = subprocess.Popen(
        [sys.executable, "-c", START, str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )
    return process


def open_folder() -> Path:
    """Make a folder that Postgres's user may enter too."""
    folder = Path(tempfile.mkdtemp(prefix="regraft-tests-", dir="/tmp"))
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def apart() -> Iterator[Settings]:
    """Have services of their own for tests that kill; started by two processes at once."""
    settings = Settings(state_dir=open_folder() / "made" / "state")
    # A Prefect server that other tests use would count as configured here.
    configured = os.environ.pop("PREFECT_API_URL", None)
    starters = [start_elsewhere(settings.state_dir) for _ in range(2)]
    try:
        outputs = [starter.communicate(timeout=60) for starter in starters]
        assert [starter.returncode for starter in starters] == [0, 0], outputs
        first, second = (json.loads(output) for output, _ in outputs)
        assert first == second, "two starters started two sets"
        yield settings
    finally:
        embedded.down(settings)
        shutil.rmtree(settings.state_dir.parent.parent)
        if configured:
            os.environ["PREFECT_API_URL"] = configured


def services_of(settings: Settings) -> dict[str, ServiceState]:
    """Give the states by the services' names."""
    return {state.name: state for state in embedded.running(settings)}


def pid_of(settings: Settings, name: str) -> int:
    """Give the process of a service that must be running."""
    state = services_of(settings)[name]
    assert state.running, state
    assert state.pid is not None
    return state.pid


def storage_of(found: Addresses) -> Storage:
    """Give the bucket behind these addresses."""
    return Storage(found.s3_endpoint, found.s3_bucket, found.s3_access_key, found.s3_secret_key)


def rows(found: Addresses) -> list[str]:
    """Give what the tests remembered in the database, making the place where needed."""
    database = Database(found.database_url)
    with database.transaction() as session:
        connection = session.connection()
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS remembered (text text)")
        texts = list(connection.exec_driver_sql("SELECT text FROM remembered").scalars())
    database.engine.dispose()
    return texts


def remember(found: Addresses, line: str) -> None:
    """Write to both services what must survive."""
    rows(found)
    database = Database(found.database_url)
    with database.transaction() as session:
        session.connection().exec_driver_sql("INSERT INTO remembered VALUES (%s)", (line,))
    database.engine.dispose()
    storage_of(found).write(f"remembered/{line}", line.encode())


def recalled(found: Addresses, line: str) -> bool:
    """Tell whether both services still have it."""
    return line in rows(found) and storage_of(found).read(f"remembered/{line}") == line.encode()


def test_second_start_takes_what_runs(apart: Settings) -> None:
    """A command finds the services of an earlier one and starts nothing."""
    before = embedded.running(apart)
    said: list[str] = []
    found = embedded.addresses(apart, say=said.append)
    assert said == []
    assert found == embedded.addresses(apart)
    assert embedded.running(apart) == before
    assert [state.running for state in before] == [True, True, False]


def test_credentials_are_for_the_owner_only(apart: Settings) -> None:
    """Generated keys lie in a file of mode 600, and show in no repr and no command line."""
    found = embedded.addresses(apart)
    file = apart.state_dir / "credentials.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for private in ("postgres", "s3"):
        assert stat.S_IMODE((apart.state_dir / private).stat().st_mode) == 0o700
    for secret in json.loads(file.read_text()).values():
        assert len(secret) >= 20
        assert secret not in repr(found) + repr(embedded.running(apart))
        for name in ("postgres", "s3"):
            command = subprocess.run(
                ["ps", "-ww", "-o", "command=", "-p", str(pid_of(apart, name))],
                capture_output=True,
                text=True,
                check=True,
            )
            assert secret not in command.stdout
        for log in (apart.state_dir / "logs").iterdir():
            assert secret not in log.read_text(errors="replace")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_strangers_are_refused_by_s3(method: str, apart: Settings) -> None:
    """Nobody reads, writes or deletes without a key."""
    found = embedded.addresses(apart)
    storage_of(found).write("private", b"x")
    connection = http.client.HTTPConnection(urlsplit(found.s3_endpoint).netloc, timeout=10)
    for path in (f"/{found.s3_bucket}", f"/{found.s3_bucket}/private", "/other"):
        connection.request(method, path)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 403
    connection.close()
    assert storage_of(found).read("private") == b"x"


def test_strangers_are_refused_by_postgres(apart: Settings) -> None:
    """A wrong password is refused: nothing is trusted for coming from this machine."""
    parts = urlsplit(embedded.addresses(apart).database_url)
    with pytest.raises(psycopg2.OperationalError, match="authentication failed"):
        psycopg2.connect(
            host=parts.hostname,
            port=parts.port,
            user="regraft",
            password="guessed",  # noqa: S106 - the point is that it is wrong
            dbname="regraft",
        )


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc of Linux")
def test_only_this_machine_is_listened_to(apart: Settings) -> None:
    """Every port of the services is bound to the loopback address."""
    ports = json.loads((apart.state_dir / "ports.json").read_text()).values()
    ours = {f"{number:04X}" for port in ports for number in (port, port + 10_000)}
    listening = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state = line.split()[:4]
            address, port = local.split(":")
            if state == "0A" and port in ours:
                listening.add(address)
    assert listening == {"0100007F"}


@pytest.mark.parametrize("name", ["postgres", "s3"])
def test_killed_service_comes_back_with_its_data(name: str, apart: Settings) -> None:
    """After kill -9 the next command just works, and what was written is there."""
    found = embedded.addresses(apart)
    remember(found, f"before killing {name}")
    session = psycopg2.connect(found.database_url.replace("+psycopg2", ""))
    killed = pid_of(apart, name)
    os.kill(killed, signal.SIGKILL)
    again = embedded.addresses(apart)
    session.close()
    assert again == found
    assert recalled(again, f"before killing {name}")
    assert pid_of(apart, name) != killed


def test_stale_pid_of_another_process_is_no_postgres(apart: Settings) -> None:
    """A pid that was left behind and belongs to somebody else by now stops nothing.

    It is the rule after a container restarts. The other process must not be touched.
    """
    options = {"user": "nobody"} if AS_ROOT else {}
    innocent = subprocess.Popen(["sleep", "600"], **options)  # type: ignore[call-overload]
    try:
        found = embedded.addresses(apart)
        killed = pid_of(apart, "postgres")
        os.kill(killed, signal.SIGKILL)
        note = apart.state_dir / "postgres" / "data" / "postmaster.pid"
        note.write_text(note.read_text().replace(str(killed), str(innocent.pid), 1))
        (apart.state_dir / "postgres.pid").write_text(str(innocent.pid))
        assert not services_of(apart)["postgres"].running
        assert embedded.addresses(apart) == found
        assert pid_of(apart, "postgres") not in {killed, innocent.pid}
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_processes_without_pid_file_are_found(apart: Settings) -> None:
    """A starter that was killed before it wrote a pid leaves no second server behind."""
    before = embedded.running(apart)
    for name in ("postgres", "s3"):
        (apart.state_dir / f"{name}.pid").unlink()
    embedded.addresses(apart)
    assert embedded.running(apart) == before


def test_down_leaves_no_process_and_taken_ports_are_changed(apart: Settings) -> None:
    """After `down` nothing runs; ports taken meanwhile are chosen anew, and the data is there."""
    found = embedded.addresses(apart)
    remember(found, "before down")
    pids = [pid_of(apart, name) for name in ("postgres", "s3")]
    said: list[str] = []
    embedded.down(apart, say=said.append)
    embedded.down(apart)
    assert len(said) == 2
    assert not any(state.running for state in embedded.running(apart))
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    ports = json.loads((apart.state_dir / "ports.json").read_text())
    with (
        socket.create_server(("127.0.0.1", ports["postgres"])),
        # weed opens each port a second time, 10,000 above
        socket.create_server(("127.0.0.1", ports["master"] + 10_000)),
    ):
        moved = embedded.addresses(apart, say=said.append)
        assert any("took a port" in line for line in said)
        assert moved.database_url != found.database_url
        assert moved.s3_endpoint != found.s3_endpoint
        assert recalled(moved, "before down")
        remember(moved, "after the move")
    assert embedded.addresses(apart) == moved
    assert recalled(moved, "after the move")


def test_lost_credentials_are_not_replaced(tmp_path: Path) -> None:
    """Data whose keys are gone is not made unreadable for good by new ones."""
    (tmp_path / "s3").mkdir()
    with pytest.raises(EmbeddedError, match=r"credentials\.json") as caught:
        embedded.addresses(Settings(state_dir=tmp_path))
    assert "\n" not in str(caught.value)


def test_configured_services_start_nothing(tmp_path: Path) -> None:
    """With everything configured the state folder is not even made."""
    settings = Settings.model_validate(
        {
            "state_dir": tmp_path / "state",
            "database_url": "postgresql://user:geheim-4711@127.0.0.1:1/photos",
            "s3_endpoint": "http://127.0.0.1:1",
            "s3_bucket": "photos",
            "s3_access_key": "key",
            "s3_secret_key": "geheim-4711",
        }
    )
    found = embedded.addresses(settings)
    assert found.database_url == "postgresql://user:geheim-4711@127.0.0.1:1/photos"
    assert (found.s3_endpoint, found.s3_secret_key) == ("http://127.0.0.1:1", "geheim-4711")
    states = embedded.running(settings)
    assert [(state.running, state.embedded) for state in states[:2]] == [(False, False)] * 2
    assert states[0].address == "postgresql://127.0.0.1:1/photos"
    assert "geheim" not in repr(states) + repr(found)
    embedded.down(settings)
    assert not settings.state_dir.exists()


@pytest.mark.skipif(not AS_ROOT, reason="only root has to start Postgres as somebody else")
def test_unreachable_folder_is_one_line_for_root(tmp_path: Path) -> None:
    """Below a private folder Postgres's user cannot work; the line says what to set."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    with pytest.raises(EmbeddedError, match="REGRAFT_STATE_DIR") as caught:
        embedded.addresses(Settings(state_dir=private / "state"))
    assert "\n" not in str(caught.value)
    assert str(private) in str(caught.value)


def can_run_python(user: str) -> bool:
    """Tell whether this user may enter our Python and repository."""
    try:
        command = [sys.executable, "-c", "import infra.embedded"]
        return subprocess.run(command, cwd=ROOT, user=user, check=False).returncode == 0
    except (PermissionError, KeyError):
        return False


@pytest.mark.skipif(not AS_ROOT, reason="needs root to become somebody else")
def test_ordinary_user_needs_nothing_from_root(apart: Settings) -> None:
    """Without root everything runs as the user himself; another user's folder is refused."""
    if not can_run_python("nobody"):
        pytest.skip("the user nobody cannot enter the folder of this Python")
    account = pwd.getpwnam("nobody")
    folder = open_folder()
    os.chown(folder, account.pw_uid, account.pw_gid)
    options = {"user": "nobody", "group": account.pw_gid, "extra_groups": []}
    try:
        starter = start_elsewhere(folder / "state", **options)
        output, errors = starter.communicate(timeout=60)
        assert starter.returncode == 0, errors
        for pid in json.loads(output)[:2]:
            assert Path(f"/proc/{pid}").stat().st_uid == account.pw_uid
        assert stat.S_IMODE((folder / "state").stat().st_mode) == 0o700
        stranger = start_elsewhere(apart.state_dir, **options)
        _, errors = stranger.communicate(timeout=60)
        assert stranger.returncode != 0
        last = errors.strip().splitlines()[-1]
        assert "EmbeddedError" in last
        assert "REGRAFT_STATE_DIR" in last
    finally:
        embedded.down(Settings(state_dir=folder / "state"))
        shutil.rmtree(folder)


def test_prefect_answers_on_postgres(prefect_server: str, services: Addresses) -> None:
    """The Prefect server runs on our Postgres, and inherits none of our settings."""
    settings = Settings()
    address = urlsplit(prefect_server)

    def healthy() -> bool:
        connection = http.client.HTTPConnection(address.netloc, timeout=10)
        connection.request("GET", f"{address.path}/health")
        answer = connection.getresponse().read()
        connection.close()
        return answer == b"true"

    assert healthy()
    connection = http.client.HTTPConnection(address.netloc, timeout=10)
    connection.request("GET", "/", headers={"Accept": "text/html"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    assert answer.status in {200, 307}, "the pages of Prefect are not served"
    owned = psycopg2.connect(services.database_url.replace("+psycopg2", ""))
    with owned.cursor() as cursor:
        cursor.execute("SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = 'prefect'")
        assert cursor.fetchone() == (True,)
    owned.close()
    pid = int((settings.state_dir / "prefect.pid").read_text())
    environment = Path(f"/proc/{pid}/environ")
    if environment.exists():
        assert b"REGRAFT_" not in environment.read_bytes()
