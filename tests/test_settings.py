"""Settings: what is wrong is refused at once, each thing in one line that names it."""

import re
from pathlib import Path

import pytest
import yaml

from infra import settings
from infra.settings import BadSettings

PLANTED = "geheim-4711"


def test_nothing_set_is_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """regraft starts without any setting."""
    monkeypatch.delenv("REGRAFT_STATE_DIR")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    found = settings.load()
    assert found.database_url is None
    assert found.s3_endpoint is None
    assert found.state_dir in {Path("/var/lib/regraft"), tmp_path / "regraft"}
    assert found.cache_dir == found.state_dir / "cache"
    assert found.spool_dir == found.state_dir / "spool"


def test_good_settings_are_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every setting can be set, and an empty variable counts as unset."""
    monkeypatch.setenv("REGRAFT_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("REGRAFT_CACHE_DIR", "")
    monkeypatch.setenv("REGRAFT_DATABASE_URL", f"postgres://user:{PLANTED}@db/regraft")
    monkeypatch.setenv("REGRAFT_S3_ENDPOINT", "https://s3.example.org/")
    monkeypatch.setenv("REGRAFT_S3_ACCESS_KEY", "key")
    monkeypatch.setenv("REGRAFT_S3_SECRET_KEY", PLANTED)
    monkeypatch.setenv("REGRAFT_CACHE_GIGABYTES", "0.5")
    monkeypatch.setenv("REGRAFT_THREADS", "2")
    monkeypatch.setenv("REGRAFT_DEVICE", "cpu")
    found = settings.load()
    assert found.database_url is not None
    assert found.database_url.get_secret_value() == f"postgresql://user:{PLANTED}@db/regraft"
    assert found.s3_endpoint == "https://s3.example.org"
    assert (found.cache_gigabytes, found.threads, found.device) == (0.5, 2, "cpu")
    assert found.cache_dir == tmp_path / "cache"
    assert PLANTED not in repr(found) + str(found)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORKERS", "0.9"),
        ("WORKERS", "-1"),
        ("WORKERS", "0"),
        ("WORKERS", "many"),
        ("WORKERS", "nan"),
        ("WORKERS", "4.0"),
        ("WORKERS", "1e2"),
        ("WORKERS", "true"),
        ("THREADS", "0"),
        ("THREADS", "0.5"),
        ("PROCESSES", "0"),
        ("PROCESSES", "all"),
        ("COMMIT", "main"),
        ("CACHE_GIGABYTES", "nan"),
        ("CACHE_GIGABYTES", "inf"),
        ("CACHE_GIGABYTES", "-1"),
        ("CACHE_GIGABYTES", "20GB"),
        ("REVIEW_SHARE", "1.01"),
        ("REVIEW_SHARE", "nan"),
        ("DOUBTFUL_BELOW", "-0.1"),
        ("IMAGE_DAYS", "0"),
        ("TRANSACTION_MONTHS", "1.5"),
        ("SPOOL_GIGABYTES", "0.01"),
        ("DEVICE", "gpu"),
        ("STATE_DIR", "/"),
        ("STATE_DIR", __file__),
        ("DATABASE_URL", "nonsense"),
        ("DATABASE_URL", "sqlite:///x.db"),
        ("DATABASE_URL", f"postgresql://user:{PLANTED}@/regraft"),
        ("DATABASE_URL", f"postgresql://user:{PLANTED}@host"),
        ("DATABASE_URL", f"postgresql://user:{PLANTED}@host:99999/regraft"),
        ("DATABASE_URL", f"postgresql://user:{PLANTED}@host:port/regraft"),
        ("DATABASE_URL", f"postgresql://user:{PLANTED}@[host/regraft"),
        ("DATABASE_URL", f"postgresql://user:{PLANTED}#1@host/regraft"),
        ("S3_ENDPOINT", "nonsense"),
        ("S3_ENDPOINT", "file:///etc"),
        ("S3_ENDPOINT", "s3://bucket"),
        ("S3_ENDPOINT", "http://"),
        ("S3_ENDPOINT", "http://host:port"),
        ("S3_ENDPOINT", "http://host/bucket"),
        ("S3_ENDPOINT", f"http://key:{PLANTED}@host"),
        ("S3_BUCKET", "ab"),
        ("S3_BUCKET", "Bucket"),
        ("S3_BUCKET", "a..b"),
        ("S3_BUCKET", "a/b"),
        ("S3_BUCKET", "10.0.0.1"),
        ("S3_BUCKET", "-abc"),
        ("S3_REGION", "us east"),
        ("S3_ACCESS_KEY", PLANTED),  # without the other, and without an endpoint
    ],
)
def test_nonsense_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong value gives one line that names its variable and never shows a secret."""
    monkeypatch.setenv(f"REGRAFT_{name}", value)
    with pytest.raises(BadSettings) as caught:
        settings.load()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("REGRAFT_" + name.split("_", maxsplit=1)[0])
    assert PLANTED not in message


def test_unknown_name_is_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt variable is not passed over in silence."""
    monkeypatch.setenv("REGRAFT_S3_BUKET", "photos")
    with pytest.raises(BadSettings, match=r"REGRAFT_S3_BUKET: .* did you mean REGRAFT_S3_BUCKET"):
        settings.load()


def test_service_links_of_kubernetes_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service named regraft beside the pod does not keep it from starting."""
    for name in ("SERVICE_HOST", "SERVICE_PORT_HTTP", "PORT", "PORT_80_TCP_ADDR", "WEB_PORT"):
        monkeypatch.setenv(f"REGRAFT_{name}", "10.0.0.7")
    settings.load()


def test_each_wrong_variable_has_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """All mistakes are told at once."""
    monkeypatch.setenv("REGRAFT_WORKERS", "0")
    monkeypatch.setenv("REGRAFT_DEVICE", "gpu")
    monkeypatch.setenv("REGRAFT_COLOUR", "red")
    with pytest.raises(BadSettings) as caught:
        settings.load()
    assert len(str(caught.value).splitlines()) == 3


def test_keys_without_endpoint_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that would be passed over for the embedded S3's own are not taken in silence."""
    monkeypatch.setenv("REGRAFT_S3_ACCESS_KEY", "key")
    monkeypatch.setenv("REGRAFT_S3_SECRET_KEY", PLANTED)
    with pytest.raises(BadSettings, match="REGRAFT_S3_ENDPOINT"):
        settings.load()


def test_containers_are_given_settings_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compose file says nothing misspelt, and what waits for the log lies on a volume."""
    path = Path(__file__).parent.parent / "docker" / "compose.yaml"
    containers = yaml.safe_load(path.read_text())["services"]
    for name in ("regraft", "web"):
        for variable, value in containers[name]["environment"].items():
            monkeypatch.setenv(variable, re.sub(r"\$\{\w+\}", PLANTED, value))
        found = settings.load()
    assert found.database_url is not None
    assert PLANTED in found.database_url.get_secret_value()
    assert f"spool:{found.spool_dir}" in containers["web"]["volumes"]
