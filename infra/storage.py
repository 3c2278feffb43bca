"""S3: one bucket, read and written so that a broken connection or a race cannot harm it."""

import functools
import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)
from botocore.httpsession import URLLib3Session
from botocore.utils import get_environ_proxies, parse_timestamp, percent_encode

from infra import embedded, settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Answer = TypeVar("Answer")

_CONNECT_SECONDS, _READ_SECONDS = 5, 60
_CONNECTIONS = 64
_READ_ATTEMPTS = 4
_BLOCK_BYTES = 1 << 20
_KEY_BYTES = 1024
_SEGMENT_BYTES = 255  # of servers that keep objects as files
_KEY_SYMBOLS = frozenset("+=~$^")  # no letters to Unicode, but common in file names


class StorageError(RuntimeError):
    """S3 cannot do what was asked; the message is one line with the mend.

    `temporary` says whether the same request may succeed later.
    """

    def __init__(self, message: str, temporary: bool = False) -> None:
        super().__init__(message)
        self.temporary = temporary


class Gone(StorageError):
    """There is no object under this key (any more)."""


class Changed(StorageError):
    """The object was overwritten since it was listed."""


class Refused(StorageError):
    """The server will not do this; of another object it may.

    An archived or encrypted object, say, or keys that may not read it, or are wrong altogether.
    """


class Conflict(StorageError):
    """Another object with other bytes already has this key, which is written only once."""


class BadKey(StorageError, ValueError):
    """The key is not one that every S3 server keeps as it is."""


@dataclass(frozen=True)
class Listed:
    """One object as a listing shows it; `etag` is without quotes, `size` in bytes."""

    key: str
    etag: str
    size: int
    modified: datetime


def bad_key(key: str) -> str | None:
    """Say why a key is refused, or None when it is good.

    S3 servers differ on empty segments, slashes at the ends and control characters, and some
    keep objects in folders, so only keys are taken that mean the same everywhere.
    """
    if not key:
        return "the key is empty"
    try:
        length = len(key.encode())
    except UnicodeEncodeError:
        return "the key holds half a surrogate pair, which is no text"
    if length > _KEY_BYTES:
        return f"the key has {length} bytes, at most {_KEY_BYTES} are allowed"
    if "://" in key:
        return "this is an address; give the key of an object inside the bucket"
    if "\\" in key:
        return "the key holds a backslash; use /"
    if key.startswith("/") or key.endswith("/"):
        return "the key begins or ends with /"
    for character in key:
        kind = unicodedata.category(character)
        if kind[0] in "LNMP" or character == " " or character in _KEY_SYMBOLS:
            continue
        named = unicodedata.name(character, f"U+{ord(character):04X}")
        return f"the key holds the character {named}, which not every S3 server keeps"
    for segment in key.split("/"):
        if not segment:
            return "the key holds an empty segment (//)"
        if len(segment.encode()) > _SEGMENT_BYTES:
            return f"a part of the key between slashes is longer than {_SEGMENT_BYTES} bytes"
        if segment in {".", ".."}:
            return f"the key holds the segment '{segment}'; a key is not a path"
    return None


class Storage:
    """One bucket at one S3 server. Safe to share between threads; survives a fork.

    Every method raises StorageError, in bounded time, when the server cannot be used.
    """

    def __init__(
        self,
        endpoint: str,
        bucket: str,
        access_key: str | None,
        secret_key: str | None,
        region: str = "us-east-1",
    ) -> None:
        parts = urlsplit(endpoint)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise StorageError(
                f"{_shown(endpoint)} is not an S3 address; use http://host:port or https://host"
            )
        self.endpoint = endpoint
        self.bucket = bucket
        self.region = region
        self._access_key = access_key
        self._secret_key = secret_key
        self._clients: dict[int, S3Client] = {}
        self._signed: dict[int, _SignedReads] = {}
        self._bucket_seen = False

    def __repr__(self) -> str:
        return f"Storage({self.endpoint}, {self.bucket})"

    def __reduce__(self) -> tuple[type["Storage"], tuple[str | None, ...]]:
        """Travel to other processes without the connections."""
        given = (self.endpoint, self.bucket, self._access_key, self._secret_key, self.region)
        return type(self), given

    def list(self, prefix: str = "", after: str | None = None) -> Iterator[Listed]:
        """Give the objects under a prefix, those after a key, in the order of their keys."""
        if prefix:
            self._check(prefix.removesuffix("/"))
        paginator = self._client.get_paginator("list_objects_v2")
        if after is None:
            pages = paginator.paginate(Bucket=self.bucket, Prefix=prefix)
        else:
            pages = paginator.paginate(Bucket=self.bucket, Prefix=prefix, StartAfter=after)
        page_iterator = iter(pages)
        while True:
            page = self._do(lambda: next(page_iterator, None), f"list {_shown(prefix)}")
            if page is None:
                return
            for found in page.get("Contents", ()):
                yield Listed(
                    key=found["Key"],
                    etag=found["ETag"].strip('"'),
                    size=found["Size"],
                    modified=found["LastModified"].astimezone(UTC),
                )

    def read(self, key: str, etag: str | None = None) -> bytes:
        """Give an object's bytes; with `etag`, only if it is still the one that was listed.

        Raises Gone or Changed.
        """
        return b"".join(self._blocks(key, etag))

    def write_once(self, key: str, body: bytes | Path, digest: str) -> bool:
        """Create an object unless it is there; tell whether this call created it.

        `digest` is the SHA-256 of the body in hex, checked before and, where the key is taken,
        against what is there. Raises Conflict when that has other bytes.
        """
        self._check(key)
        actual = _digest_of(body)
        if actual != digest:
            raise StorageError(f"{_shown(key)} was to have the digest {digest} but has {actual}")
        for _ in range(_READ_ATTEMPTS):
            try:
                self._put(key, body, IfNoneMatch="*")
            except Changed:
                pass  # somebody was first, or our own request was sent twice
            else:
                return True
            try:
                there = self._digest_there(key)
            except Gone:
                continue
            if there == digest:
                return False
            raise Conflict(
                f"{_shown(key)} in bucket {self.bucket} already holds other bytes ({there}); "
                "objects of this kind are never replaced"
            )
        raise StorageError(
            f"{_shown(key)} in bucket {self.bucket} comes and goes while it is written; "
            "find out who deletes it"
        )

    def write(self, key: str, body: bytes | Path, content_type: str | None = None) -> None:
        """Create or replace an object; a browser shows it as `content_type`."""
        self._check(key)
        self._put(key, body, **({"ContentType": content_type} if content_type else {}))

    def link(self, key: str, days: float) -> str:
        """An address under which anybody can read this one object for so many days, at most 7."""
        self._check(key)
        return self._client.generate_presigned_url(
            "get_object",
            Params={"Bucket": self.bucket, "Key": key},
            ExpiresIn=round(days * 86400),
        )

    def copy(self, from_key: str, to_key: str) -> None:
        """Copy an object inside the bucket without fetching it. Raises Gone."""
        self._check(from_key)
        self._check(to_key)
        self._do(
            lambda: self._client.copy_object(
                Bucket=self.bucket,
                Key=to_key,
                CopySource={"Bucket": self.bucket, "Key": from_key},
            ),
            f"copy {_shown(from_key)}",
        )

    def delete(self, key: str) -> None:
        """Delete an object; deleting what is not there is no error."""
        self._check(key)
        self._do(
            lambda: self._client.delete_object(Bucket=self.bucket, Key=key),
            f"delete {_shown(key)}",
        )

    def look(self, key: str) -> Listed:
        """An object's size and ETag without its bytes. Raises Gone."""
        self._check(key)
        found = self._do(
            lambda: self._client.head_object(Bucket=self.bucket, Key=key), f"look at {_shown(key)}"
        )
        return Listed(
            key=key,
            etag=found["ETag"].strip('"'),
            size=found["ContentLength"],
            modified=found["LastModified"].astimezone(UTC),
        )

    def exists(self, key: str) -> bool:
        """Tell whether there is an object under this key."""
        self._check(key)
        try:
            self._do(
                lambda: self._client.head_object(Bucket=self.bucket, Key=key),
                f"look for {_shown(key)}",
            )
        except Gone:
            # The answer to HEAD has no body: a missing bucket looks like a missing object.
            self._require_bucket()
            return False
        return True

    def ensure_bucket(self) -> None:
        """Create the bucket unless it is there."""
        try:
            self._require_bucket()
        except Gone:
            pass
        else:
            return
        place: dict[str, Any] = {}
        if self.region != "us-east-1":  # which S3 refuses to be told
            place = {"CreateBucketConfiguration": {"LocationConstraint": self.region}}
        self._do(
            lambda: self._client.create_bucket(Bucket=self.bucket, **place), "create the bucket"
        )

    @property
    def _client(self) -> "S3Client":
        """The client of this process; its connections do not survive a fork."""
        process = os.getpid()
        client = self._clients.get(process)
        if client is None:
            client = self._clients.setdefault(process, self._make_client())
        return client

    @property
    def _signed_reads(self) -> "_SignedReads":
        process = os.getpid()
        reads = self._signed.get(process)
        if reads is None:
            made = _SignedReads(self)
            reads = self._signed.setdefault(process, made)
        return reads

    def _make_client(self) -> "S3Client":
        # Clients may be shared between threads; the default session, which makes them, may not.
        core = botocore.session.get_session()
        core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_moment)
        return boto3.session.Session(botocore_session=core).client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=self._access_key,
            aws_secret_access_key=self._secret_key,
            config=Config(
                signature_version="s3v4",
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_READ_SECONDS,
                retries={"mode": "standard", "max_attempts": 4},
                max_pool_connections=_CONNECTIONS,
                # Signing the body makes every server check what arrived; newer checksum
                # headers are not known to all of them.
                s3={"addressing_style": "path", "payload_signing_enabled": True},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def _check(self, key: str) -> None:
        problem = bad_key(key)
        if problem is not None:
            raise BadKey(f"{_shown(key)} is refused: {problem}")

    def _require_bucket(self) -> None:
        if not self._bucket_seen:
            self._do(lambda: self._client.head_bucket(Bucket=self.bucket), "find the bucket")
            self._bucket_seen = True

    def _put(self, key: str, body: bytes | Path, **conditions: Any) -> None:
        with ExitStack() as stack:
            content: bytes | IO[bytes] = (
                stack.enter_context(body.open("rb")) if isinstance(body, Path) else body
            )
            self._do(
                lambda: self._client.put_object(
                    Bucket=self.bucket, Key=key, Body=content, **conditions
                ),
                f"write {_shown(key)}",
            )

    def _digest_there(self, key: str) -> str:
        digest = hashlib.sha256()
        for block in self._blocks(key, None):
            digest.update(block)
        return digest.hexdigest()

    def _blocks(self, key: str, etag: str | None) -> tuple[bytes, ...]:
        """Read a whole object; boto3 repeats a failed request but not a body cut short."""
        self._check(key)
        condition: dict[str, Any] = {} if etag is None else {"IfMatch": f'"{etag}"'}

        whole = self._signed_reads.get(key, etag)
        if whole is not None:
            return (whole,)

        def get() -> tuple[bytes, ...]:
            answer = self._client.get_object(Bucket=self.bucket, Key=key, **condition)
            with closing(answer["Body"]) as body:
                blocks = tuple(body.iter_chunks(_BLOCK_BYTES))
            length = sum(map(len, blocks))
            if length != answer["ContentLength"]:
                raise IncompleteReadError(
                    actual_bytes=length, expected_bytes=answer["ContentLength"]
                )
            return blocks

        for _ in range(_READ_ATTEMPTS - 1):
            try:
                return self._do(get, f"read {_shown(key)}", passing=_CUT_SHORT)
            except _CUT_SHORT:
                continue
        return self._do(get, f"read {_shown(key)}")

    def _do(
        self,
        request: Callable[[], Answer],
        what: str,
        passing: tuple[type[Exception], ...] = (),
    ) -> Answer:
        try:
            return request()
        except passing:
            raise
        except ClientError as error:
            raise self._refused(error, what) from None
        except (BotoCoreError, HTTPClientError) as error:
            raise self._failed(error, what) from None

    def _failed(self, error: Exception, what: str) -> StorageError:
        place = f"S3 at {self.endpoint}"
        if isinstance(error, NoCredentialsError):
            return StorageError(
                f"{place}: no keys are set; set REGRAFT_S3_ACCESS_KEY and REGRAFT_S3_SECRET_KEY"
            )
        if isinstance(error, SSLError):
            return StorageError(
                f"{place} has no certificate that this machine trusts; check REGRAFT_S3_ENDPOINT, "
                "or name the authority's file in AWS_CA_BUNDLE"
            )
        if isinstance(error, _NO_ANSWER):
            return StorageError(
                f"{place} does not answer (bucket {self.bucket}); start it with `regraft up`, "
                "or check REGRAFT_S3_ENDPOINT",
                temporary=True,
            )
        reason = " ".join(str(error).split())
        return StorageError(
            f"{place}: cannot {what} in bucket {self.bucket}: {reason}; try again",
            temporary=isinstance(error, _CUT_SHORT),
        )

    def _refused(self, error: ClientError, what: str) -> StorageError:
        place = f"S3 at {self.endpoint}"
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code == "NoSuchBucket" or (code == "404" and what == "find the bucket"):
            return Gone(
                f"{place} has no bucket {self.bucket}; create it, or correct REGRAFT_S3_BUCKET"
            )
        if code in {"NoSuchKey", "404"}:
            return Gone(f"{place}: cannot {what}: there is no such object in bucket {self.bucket}")
        if status == 412 or code == "ConditionalRequestConflict":
            return Changed(
                f"{place}: cannot {what}: the object in bucket {self.bucket} was changed meanwhile"
            )
        if code == "RequestTimeTooSkewed":
            return StorageError(
                f"{place}: the clock of this machine differs too much from the server's "
                f"(bucket {self.bucket}); set the clock (NTP) on the one that is wrong"
            )
        if code in _EXPIRED:
            return StorageError(
                f"{place}: the keys for bucket {self.bucket} have expired ({code}); renew "
                "REGRAFT_S3_ACCESS_KEY and REGRAFT_S3_SECRET_KEY"
            )
        if status in {401, 403}:
            return Refused(
                f"{place}: cannot {what}: the keys for bucket {self.bucket} are refused ({code}); "
                "check REGRAFT_S3_ACCESS_KEY and REGRAFT_S3_SECRET_KEY and what they may do"
            )
        temporary = status >= 500 or code in {"SlowDown", "RequestTimeout", "Throttling"}
        return (StorageError if temporary else Refused)(
            f"{place}: cannot {what} in bucket {self.bucket}: it answers {status} {code}; "
            "read the server's log",
            temporary,
        )


class _SignedReads:
    """Objects by botocore's own signer and connections, without what boto3 does around them.

    That is two thirds of the work of reading a small object: intake reads thousands. Whatever is
    not a whole object at once is left to boto3, which knows what to try again and what to say.
    """

    def __init__(self, storage: Storage) -> None:
        session = botocore.session.get_session()
        if storage._access_key is not None and storage._secret_key is not None:
            session.set_credentials(storage._access_key, storage._secret_key)
        self._credentials = session.get_credentials()
        self._region = storage.region
        self._folder = f"{storage.endpoint.rstrip('/')}/{storage.bucket}/"
        self._connections = URLLib3Session(
            verify=session.get_config_variable("ca_bundle") or True,
            proxies=get_environ_proxies(storage.endpoint),
            timeout=(_CONNECT_SECONDS, _READ_SECONDS),  # type: ignore[arg-type]  # the stub errs
            max_pool_connections=_CONNECTIONS,
        )

    def get(self, key: str, etag: str | None) -> bytes | None:
        """The bytes, or None when the first attempt did not give them all."""
        if self._credentials is None:
            return None
        headers = {} if etag is None else {"If-Match": f'"{etag}"'}
        request = AWSRequest("GET", self._folder + percent_encode(key, "/~"), headers)
        try:
            # Asked for each time, because the keys of a role expire.
            keys = self._credentials.get_frozen_credentials()
            S3SigV4Auth(keys, "s3", self._region).add_auth(request)
            answer = self._connections.send(request.prepare())
        except BotoCoreError:
            return None
        body = answer.content
        whole = answer.status_code == 200 and answer.headers.get("Content-Length") == str(len(body))
        return body if whole else None


_CUT_SHORT = (
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
    ConnectionClosedError,
    FlexibleChecksumError,
)
_NO_ANSWER = (
    EndpointConnectionError,
    ConnectTimeoutError,
    ReadTimeoutError,
    ConnectionClosedError,
)
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}


@functools.cache
def connect() -> Storage:
    """Give the configured bucket, or the embedded S3's, started and created when needed."""
    found = settings.load()
    where = embedded.addresses(found)
    storage = Storage(
        where.s3_endpoint,
        where.s3_bucket,
        where.s3_access_key,
        where.s3_secret_key,
        found.s3_region,
    )
    if found.s3_endpoint is None:
        storage.ensure_bucket()
    return storage


def _moment(value: Any) -> datetime:
    """A time as S3 writes it; botocore guesses the format anew for each, half of a long listing."""
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):  # headers have other formats
        return parse_timestamp(value)


def _digest_of(body: bytes | Path) -> str:
    if isinstance(body, Path):
        with body.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(body).hexdigest()


def _shown(key: str) -> str:
    """Give a key for a message: quoted, control characters escaped, cut when very long."""
    text = repr(key)
    return text if len(text) <= 200 else text[:200] + "…'"
