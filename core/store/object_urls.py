"""What the URL of a bucket or container says, with the credentials that the environment adds to it.

Pure but for reading the user's AWS files. A credential never becomes part of a URL, a message or a `repr`.
"""

import configparser
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from core.errors import UsageError
from core.store.keys import check_key

_OPTIONS = {
    "s3": {"endpoint", "region", "style", "profile", "anonymous"},
    "gs": {"endpoint", "anonymous"},
    "az": {"endpoint", "account", "anonymous"},
}
_YES = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True)
class Bucket:
    """A bucket or container, a key prefix in it ("" or ending in a slash), and obstore's settings to reach it."""

    scheme: str
    name: str
    prefix: str
    url: str
    allow_http: bool
    settings: Mapping[str, str | bool] = field(repr=False)


def parse_bucket_url(url: str, environment: Mapping[str, str], home: Path) -> Bucket:
    """Read `s3://`, `gs://` or `az://` bucket `/` prefix `?` options; UsageError says what is wrong with it.

    `s3`: endpoint, region, style=path|virtual, profile, anonymous. `gs`: endpoint, anonymous. `az`: account, endpoint,
    anonymous. What the URL does not say comes from the usual variables of each cloud's tools.
    """
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    known = _OPTIONS[parts.scheme]
    if unknown := sorted(set(options) - known):
        raise UsageError(f"{parts.scheme}:// takes no option {unknown[0]!r}; it takes {', '.join(sorted(known))}")
    if not parts.netloc or "@" in parts.netloc:
        raise UsageError(f"write {parts.scheme}://BUCKET/PREFIX; credentials come from the environment, never the URL")
    prefix = unquote(parts.path).strip("/")
    if prefix:
        check_key(prefix)
    settings: dict[str, str | bool] = {}
    if _yes(options, "anonymous"):
        settings["skip_signature"] = True
    reader = {"s3": _s3_settings, "gs": _gs_settings, "az": _az_settings}[parts.scheme]
    endpoint = reader(options, environment, home, settings)
    return Bucket(
        scheme=parts.scheme,
        name=parts.netloc,
        prefix=f"{prefix}/" if prefix else "",
        url=f"{parts.scheme}://{parts.netloc}/{prefix}".rstrip("/"),
        allow_http=endpoint.startswith("http://"),
        settings=settings,
    )


def _s3_settings(
    options: Mapping[str, str], environment: Mapping[str, str], home: Path, settings: dict[str, str | bool]
) -> str:
    profile = _aws_profile(options.get("profile"), environment, home)

    def value(option: str, *names: str) -> str:
        return options.get(option) or next((environment[name] for name in names if environment.get(name)), "")

    # A profile that the URL names wins over keys in the environment, as with Amazon's own tools.
    from_profile = "profile" in options
    for setting in ("access_key_id", "secret_access_key", "session_token"):
        name = f"aws_{setting}"
        found = (profile.get(name) if from_profile else environment.get(name.upper())) or profile.get(name, "")
        if found and not (setting == "session_token" and not from_profile and environment.get("AWS_ACCESS_KEY_ID")):
            settings[setting] = found
    if not from_profile and environment.get("AWS_ACCESS_KEY_ID") and environment.get("AWS_SESSION_TOKEN"):
        settings["session_token"] = environment["AWS_SESSION_TOKEN"]
    endpoint = value("endpoint", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") or profile.get("endpoint_url", "")
    if endpoint:
        settings["endpoint"] = _check_endpoint(endpoint)
    settings["region"] = value("region", "AWS_REGION", "AWS_DEFAULT_REGION") or profile.get("region", "us-east-1")
    style = options.get("style", "path" if endpoint else "virtual")
    if style not in ("path", "virtual"):
        raise UsageError(f"s3:// style is path or virtual, not {style!r}")
    settings["virtual_hosted_style_request"] = style == "virtual"
    return endpoint


def _gs_settings(
    options: Mapping[str, str], environment: Mapping[str, str], _home: Path, settings: dict[str, str | bool]
) -> str:
    endpoint = options.get("endpoint") or environment.get("STORAGE_EMULATOR_HOST", "")
    if endpoint:
        settings["base_url"] = _check_endpoint(endpoint)
    if account := environment.get("GOOGLE_APPLICATION_CREDENTIALS"):
        settings["application_credentials"] = account
    if token := environment.get("GOOGLE_OAUTH_ACCESS_TOKEN"):
        settings["bearer_token"] = token
    return endpoint


def _az_settings(
    options: Mapping[str, str], environment: Mapping[str, str], _home: Path, settings: dict[str, str | bool]
) -> str:
    account = options.get("account") or environment.get("AZURE_STORAGE_ACCOUNT_NAME")
    if not account:
        raise UsageError("az:// needs ?account=NAME or AZURE_STORAGE_ACCOUNT_NAME in the environment")
    settings["account_name"] = account
    for setting, name in (
        ("account_key", "AZURE_STORAGE_ACCOUNT_KEY"),
        ("sas_key", "AZURE_STORAGE_SAS_KEY"),
        ("client_id", "AZURE_CLIENT_ID"),
        ("client_secret", "AZURE_CLIENT_SECRET"),
        ("tenant_id", "AZURE_TENANT_ID"),
    ):
        if found := environment.get(name):
            settings[setting] = found
    endpoint = options.get("endpoint") or environment.get("AZURE_STORAGE_ENDPOINT", "")
    if endpoint:
        settings["endpoint"] = _check_endpoint(endpoint)
    return endpoint


def _aws_profile(named: str | None, environment: Mapping[str, str], home: Path) -> dict[str, str]:
    """Give the settings of the profile, from the credentials file over the config file; {} if nobody named one."""
    name = named or environment.get("AWS_PROFILE") or "default"
    found: dict[str, str] = {}
    for variable, file, section in (
        ("AWS_CONFIG_FILE", "config", name if name == "default" else f"profile {name}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", name),
    ):
        parser = configparser.RawConfigParser()
        path = Path(environment.get(variable) or home / ".aws" / file)
        try:
            parser.read(path, encoding="utf-8")
        except configparser.Error as cause:
            # The parser's own message quotes the line, which may be a secret.
            raise UsageError(f"{path} is not a file of AWS profiles: {type(cause).__name__}") from None
        if parser.has_section(section):
            found |= dict(parser[section])
    if not found and (named or environment.get("AWS_PROFILE")):
        raise UsageError(f"there is no AWS profile {name!r} in {home / '.aws'}")
    return found


def _check_endpoint(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        raise UsageError("an endpoint is http:// or https:// and a host, without credentials")
    return endpoint.rstrip("/")


def _yes(options: Mapping[str, str], name: str) -> bool:
    try:
        return _YES[options.get(name, "0").lower()]
    except KeyError:
        raise UsageError(f"option {name} is true or false, not {options[name]!r}") from None
