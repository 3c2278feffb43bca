"""Where things are: every setting that regraft reads from the environment, checked before use."""

import difflib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.places import default_state_dir

PREFIX = "REGRAFT_"

# Kubernetes injects these for every service in the namespace, so a service called "regraft"
# would otherwise look like a row of misspelt settings.
_SERVICE_LINK = re.compile(
    r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?$"
)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_COMMIT = re.compile(r"[0-9a-f]{7,64}(-dirty)?")
_DOTTED_NUMBERS = re.compile(r"\d+(\.\d+){3}")


class BadSettings(ValueError):
    """One or more settings are wrong; the message has one line for each."""


def _folder(value: Path) -> Path:
    try:
        value = value.expanduser()
    except RuntimeError:
        raise ValueError(
            "'~' means nothing here, no home folder is known; give a full path"
        ) from None
    if "\x00" in str(value):
        raise ValueError("a path cannot hold a NUL character")
    # Background services outlive the folder that a command was typed in.
    value = value.absolute()
    if value == Path("/"):
        raise ValueError("the root folder cannot be used; name a folder of its own")
    if value.exists() and not value.is_dir():
        raise ValueError("this is a file; name a folder")
    return value


def _port_of(url: str) -> int | None:
    try:
        return urlsplit(url).port
    except ValueError:
        raise ValueError("the port is not a number from 1 to 65535") from None


def _postgres_url(value: SecretStr) -> SecretStr:
    wanted = "use postgresql://user:password@host:5432/database"
    url = value.get_secret_value().strip()
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(f"this is not an address; {wanted}") from None
    if parts.scheme not in {"postgresql", "postgresql+psycopg2", "postgres"}:
        raise ValueError(f"this is not a Postgres address; {wanted}")
    if not parts.hostname:
        raise ValueError(f"the host is missing; {wanted}")
    _port_of(url)
    if not parts.path.strip("/"):
        raise ValueError(f"the database's name is missing; {wanted}")
    if parts.fragment or any(character.isspace() for character in url):
        raise ValueError(f"it holds '#' or a space, write %23 or %20; {wanted}")
    # SQLAlchemy does not know the old name of the scheme.
    return SecretStr(re.sub(r"^postgres:", "postgresql:", url))


def _endpoint(value: str) -> str:
    wanted = "use http://host:port or https://host"
    value = value.strip()
    try:
        parts = urlsplit(value)
    except ValueError:
        raise ValueError(f"this is not an address; {wanted}") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"this is not an http or https address; {wanted}")
    _port_of(value)
    if parts.username is not None or parts.password is not None:
        raise ValueError("keys do not belong into the address; use REGRAFT_S3_ACCESS_KEY")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("only host and port belong here; the bucket goes into REGRAFT_S3_BUCKET")
    if any(character.isspace() or not character.isprintable() for character in value):
        raise ValueError(f"it holds a space or a control character; {wanted}")
    return value.rstrip("/")


def _bucket(value: str) -> str:
    if not _BUCKET.fullmatch(value) or ".." in value or _DOTTED_NUMBERS.fullmatch(value):
        raise ValueError(
            "a bucket's name has 3 to 63 small letters, digits, dots and hyphens, "
            "and begins and ends with a letter or digit"
        )
    return value


def _commit(value: str) -> str:
    if not _COMMIT.fullmatch(value):
        raise ValueError("this is no commit; use 7 to 64 hexadecimal digits, then -dirty if it is")
    return value


def _whole_number(value: object) -> object:
    # pydantic reads 4.0 and True as whole numbers; a setting that needs guessing is refused.
    if isinstance(value, bool | float):
        raise ValueError("this is not a whole number")
    if isinstance(value, str) and not re.fullmatch(r"\s*[+-]?[0-9]+\s*", value):
        raise ValueError("this is not a whole number")
    return value


Folder = Annotated[Path, AfterValidator(_folder)]
WholeNumber = Annotated[int, BeforeValidator(_whole_number)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


def _in_state_dir(name: str) -> Callable[[dict[str, Any]], Path]:
    def default(values: dict[str, Any]) -> Path:
        # state_dir is absent here only when it was refused itself, which load() reports.
        state_dir: Path = values.get("state_dir", Path())
        return state_dir / name

    return default


class Settings(BaseSettings):
    """Where things are. Read from environment variables with the prefix `REGRAFT_`.

    What is not set falls to the embedded services, so no setting is needed to begin with.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,  # compose files pass unset variables on as empty ones
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    state_dir: Folder = Field(default_factory=default_state_dir, validate_default=True)
    database_url: Annotated[SecretStr, AfterValidator(_postgres_url)] | None = None
    s3_endpoint: Annotated[str, AfterValidator(_endpoint)] | None = None
    s3_bucket: Annotated[str, AfterValidator(_bucket)] = "regraft"
    s3_access_key: SecretStr | None = None
    s3_secret_key: SecretStr | None = None
    s3_region: Annotated[str, Field(pattern=r"^[a-zA-Z0-9-]{1,64}$")] = "us-east-1"
    cache_dir: Folder = Field(default_factory=_in_state_dir("cache"))
    cache_gigabytes: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 20.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[WholeNumber, Field(ge=1, le=1024)] | None = None
    processes: Annotated[WholeNumber, Field(ge=1, le=1024)] | None = None
    workers: Annotated[WholeNumber, Field(ge=1, le=256)] = 16
    # the log of what is served, docs/transactions.md: which pictures are kept with it ...
    review_share: Share = 0.02
    doubtful_share: Share = 1.0
    doubtful_below: Share = 0.5
    image_share: Share = 0.0
    # ... for how long ...
    image_days: Annotated[WholeNumber, Field(ge=1, le=36_500)] = 90
    transaction_months: Annotated[WholeNumber, Field(ge=1, le=1200)] = 13
    # ... and where it waits while Postgres or S3 is away
    spool_dir: Folder = Field(default_factory=_in_state_dir("spool"))
    spool_gigabytes: Annotated[float, Field(ge=0.1, le=1e6, allow_inf_nan=False)] = 2.0
    # of this program, where it is no checkout that could be asked; docker/Dockerfile sets it
    commit: Annotated[str, AfterValidator(_commit)] | None = None


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """Read and check the settings; raise BadSettings with one line for each wrong variable.

    `environment` is only looked at for misspelt names; values come from the process itself.
    """
    problems = _unknown_names(os.environ if environment is None else environment)
    try:
        settings = Settings()
    except ValidationError as error:
        for found in error.errors(include_url=False, include_input=False, include_context=False):
            if found["type"] == "default_factory_not_called":
                continue  # a default that follows from another setting, which has its own line
            name = PREFIX + str(found["loc"][0]).upper() if found["loc"] else PREFIX + "*"
            problems.append(f"{name}: {_sentence(found['type'], found['msg'])}")
        raise BadSettings("\n".join(problems)) from None
    problems += _contradictions(settings)
    if problems:
        raise BadSettings("\n".join(problems))
    return settings


def _sentence(kind: str, message: str) -> str:
    wordings = {
        "int_parsing": "this is not a whole number",
        "float_parsing": "this is not a number",
        "finite_number": "this is not a finite number",
        "string_pattern_mismatch": "only letters, digits and hyphens are allowed",
    }
    return wordings.get(kind, message.removeprefix("Value error, "))


def _unknown_names(environment: Mapping[str, str]) -> list[str]:
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    problems = []
    for name in sorted(environment):
        upper = name.upper()
        if not upper.startswith(PREFIX) or upper in known or _SERVICE_LINK.search(upper):
            continue
        near = difflib.get_close_matches(upper, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "known are " + ", ".join(known)
        problems.append(f"{name}: there is no such setting; {hint}")
    return problems


def _contradictions(settings: Settings) -> list[str]:
    problems = []
    if (settings.s3_access_key is None) != (settings.s3_secret_key is None):
        missing = "ACCESS" if settings.s3_access_key is None else "SECRET"
        problems.append(
            f"REGRAFT_S3_{missing}_KEY: only the other of the two keys is set; set both"
        )
    elif settings.s3_access_key is not None and settings.s3_endpoint is None:
        # Otherwise the keys would be passed over in silence for the embedded S3's own.
        problems.append(
            "REGRAFT_S3_ENDPOINT: keys are set but no endpoint; set it, or drop the keys"
        )
    return problems
