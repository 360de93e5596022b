"""URLs of stores: what they mean, what is refused, and that no credential ever shows."""

from pathlib import Path

import pytest

from core.errors import UsageError
from core.store.factory import open_store
from core.store.file import FileStore
from core.store.object_urls import parse_bucket_url

NOWHERE = Path("/nonexistent")
KEYS = {"AWS_ACCESS_KEY_ID": "the-id", "AWS_SECRET_ACCESS_KEY": "the-secret"}


@pytest.mark.parametrize(
    "url",
    [
        "", "pool", "/srv/pool", "http://host/x", "file://relative/pool", "file://", "file:///srv/pool?x=1", "memory://",
        "s3://", "s3:///prefix", "s3://bucket/../other", "s3://bucket/x?nonsense=1", "s3://id:secret@bucket/x",
        "s3://bucket/x?style=odd", "s3://bucket/x?endpoint=host:80", "s3://bucket/x?endpoint=http://a:b@host",
        "s3://bucket/x?anonymous=perhaps", "s3://bucket/x?profile=absent", "az://container/x", "rados://pool",
        "rados://pool/x?nonsense=1", "rados:///x", "gs://bucket/x?region=eu",
    ],
)  # fmt: skip
def test_a_url_that_makes_no_sense_is_refused_before_anything_is_contacted(url):
    with pytest.raises(UsageError) as caught:
        open_store(url, environment={"HOME": "/nonexistent"})
    assert "secret" not in str(caught.value).replace("never the URL", "")


def test_a_directory_url_may_have_escapes(tmp_path):
    store = open_store(f"file://{tmp_path}/with%20space")
    assert isinstance(store, FileStore)
    store.put("a", b"x")
    assert (tmp_path / "with space" / "a").read_bytes() == b"x"
    store.close()


def test_credentials_come_from_the_environment_and_never_show():
    bucket = parse_bucket_url("s3://bucket/a/b", {**KEYS, "AWS_SESSION_TOKEN": "the-token"}, NOWHERE)
    assert bucket.settings["access_key_id"] == "the-id"
    assert bucket.settings["secret_access_key"] == "the-secret"
    assert bucket.settings["session_token"] == "the-token"
    assert (bucket.name, bucket.prefix, bucket.url) == ("bucket", "a/b/", "s3://bucket/a/b")
    for text in (repr(bucket), str(bucket)):
        assert "the-" not in text


def test_an_endpoint_means_path_style_unless_the_url_says_otherwise():
    environment = {**KEYS, "AWS_ENDPOINT_URL": "http://127.0.0.1:9000/"}
    bucket = parse_bucket_url("s3://bucket", environment, NOWHERE)
    assert bucket.settings["endpoint"] == "http://127.0.0.1:9000"
    assert bucket.settings["virtual_hosted_style_request"] is False
    assert bucket.allow_http
    amazon = parse_bucket_url("s3://bucket?region=eu-north-1", KEYS, NOWHERE)
    assert amazon.settings["virtual_hosted_style_request"] is True
    assert amazon.settings["region"] == "eu-north-1"
    assert not amazon.allow_http
    virtual = parse_bucket_url("s3://bucket?endpoint=https://s3.example.net&style=virtual", KEYS, NOWHERE)
    assert virtual.settings["virtual_hosted_style_request"] is True


def test_profiles_are_read_from_the_users_aws_files(tmp_path):
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        "[default]\naws_access_key_id = d-id\naws_secret_access_key = d%key\n"
        "[work]\naws_access_key_id = w-id\naws_secret_access_key = w-key\naws_session_token = w-token\n"
    )
    (tmp_path / ".aws" / "config").write_text(
        "[profile work]\nregion = eu-west-1\nendpoint_url = https://s3.example.net\n"
    )
    default = parse_bucket_url("s3://bucket", {}, tmp_path).settings
    assert (default["access_key_id"], default["secret_access_key"]) == ("d-id", "d%key")
    assert "session_token" not in default
    for settings in (
        parse_bucket_url("s3://bucket?profile=work", KEYS, tmp_path).settings,
        parse_bucket_url("s3://bucket", {"AWS_PROFILE": "work"}, tmp_path).settings,
    ):
        assert settings["access_key_id"] == "w-id"
        assert settings["session_token"] == "w-token"
        assert settings["region"] == "eu-west-1"
        assert settings["endpoint"] == "https://s3.example.net"
    environment = parse_bucket_url("s3://bucket", {**KEYS, "AWS_PROFILE": "work"}, tmp_path).settings
    assert environment["access_key_id"] == "the-id"
    assert "session_token" not in environment


def test_a_broken_aws_file_is_named_without_its_content(tmp_path):
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("aws_secret_access_key = hush\n")
    with pytest.raises(UsageError) as caught:
        parse_bucket_url("s3://bucket", {}, tmp_path)
    assert "credentials" in str(caught.value)
    assert "hush" not in str(caught.value)


def test_azure_and_google_take_their_usual_variables():
    azure = parse_bucket_url("az://box/p?account=acc", {"AZURE_STORAGE_ACCOUNT_KEY": "k"}, NOWHERE)
    assert (azure.settings["account_name"], azure.settings["account_key"]) == ("acc", "k")
    google = parse_bucket_url(
        "gs://box/p?endpoint=http://localhost:1", {"GOOGLE_APPLICATION_CREDENTIALS": "/f.json"}, NOWHERE
    )
    assert google.settings["application_credentials"] == "/f.json"
    assert google.settings["base_url"] == "http://localhost:1"
    assert google.allow_http
