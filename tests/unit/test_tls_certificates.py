"""The small certificate authority: who gets a certificate, what stands in it, and who is let in with it."""

import dataclasses
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509

from core.cli.main import run
from core.errors import AlreadyExistsError, NotFoundError, UsageError
from core.world import World
from metadata_server.certificates import Use, issue, make_authority
from metadata_server.tls import client_context, server_context

WORLD = World.real()


@pytest.fixture
def authority(tmp_path) -> Path:
    directory = tmp_path / "tls"
    make_authority(directory, "test", WORLD)
    issue(directory, Use.SERVER, "server", WORLD, hosts=["storage.example", "127.0.0.1"])
    issue(directory, Use.CLIENT, "laptop", WORLD)
    return directory


def shake(
    client: ssl.SSLContext, server: ssl.SSLContext, host: str = "storage.example"
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Let the two ends of a connection agree, in memory; what one of them refuses is raised."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    done = [False, False]
    for _ in range(10):
        for number, end in enumerate(ends):
            if done[number]:
                continue
            try:
                end.do_handshake()
                done[number] = True
            except ssl.SSLWantReadError:
                pass
        if all(done):
            ends[1].write(b"in")  # a client that is refused learns it with the first bytes
            assert ends[0].read(2) == b"in"
            return ends
    raise AssertionError("they never agreed")


def test_a_client_and_a_server_of_one_authority_meet_over_tls_1_3(authority: Path) -> None:
    client, server = shake(client_context(authority), server_context(authority))
    assert client.version() == server.version() == "TLSv1.3"
    shown = dict(pair for (pair,) in server.getpeercert()["subject"])
    assert shown["commonName"] == "laptop", "the server knows who came"
    shake(client_context(authority), server_context(authority), "127.0.0.1")


def test_a_server_reached_by_another_name_is_not_believed(authority: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for 'other\.example'"):
        shake(client_context(authority), server_context(authority), "other.example")


def test_who_has_a_certificate_of_another_authority_is_refused_on_either_side(authority: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_authority(other, "test", WORLD)
    issue(other, Use.SERVER, "server", WORLD, hosts=["storage.example"])
    issue(other, Use.CLIENT, "laptop", WORLD)
    with pytest.raises(ssl.SSLError):
        shake(client_context(other), server_context(authority))
    with pytest.raises(ssl.SSLError):
        shake(client_context(authority), server_context(other))


def test_a_client_without_a_certificate_is_refused(authority: Path) -> None:
    nobody = ssl.create_default_context(cafile=str(authority / "ca.crt"))
    with pytest.raises(ssl.SSLError, match=r"CERTIFICATE_REQUIRED|peer did not return a certificate"):
        shake(nobody, server_context(authority))


def test_a_clients_certificate_does_not_make_a_server_nor_a_servers_a_client(authority: Path, tmp_path: Path) -> None:
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    for end, other in (("client", "server"), ("server", "client")):
        for suffix in ("crt", "key"):
            (swapped / f"{end}.{suffix}").write_bytes((authority / f"{other}.{suffix}").read_bytes())
            (swapped / f"{end}.{suffix}").chmod(0o600)
    (swapped / "ca.crt").write_bytes((authority / "ca.crt").read_bytes())
    with pytest.raises(ssl.SSLError):
        shake(client_context(authority), server_context(swapped))
    with pytest.raises(ssl.SSLError):
        shake(client_context(swapped), server_context(authority))


def test_older_tls_is_not_spoken(authority: Path) -> None:
    old = client_context(authority)
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        shake(old, server_context(authority))


def test_an_expired_certificate_is_refused(authority: Path, tmp_path: Path) -> None:
    past = dataclasses.replace(WORLD, now=lambda: WORLD.now() - 10 * 86400)
    issue(authority, Use.CLIENT, "laptop", past, days=9, overwrite=True)
    with pytest.raises(ssl.SSLError, match="expired"):
        shake(client_context(authority), server_context(authority))


def test_keys_are_private_from_the_first_byte_and_checked_when_used(authority: Path) -> None:
    for name in ("ca", "server", "client"):
        assert stat.S_IMODE((authority / f"{name}.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(authority.stat().st_mode) == 0o700
    (authority / "client.key").chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        client_context(authority)


def test_certificates_say_what_they_are_for_and_how_long(authority: Path) -> None:
    server = x509.load_pem_x509_certificate((authority / "server.crt").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["storage.example"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert 800 < (server.not_valid_after_utc - server.not_valid_before_utc).days < 900
    authority_certificate = x509.load_pem_x509_certificate((authority / "ca.crt").read_bytes())
    constraints = authority_certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and constraints.value == x509.BasicConstraints(ca=True, path_length=0)


def test_nothing_is_replaced_unless_asked(authority: Path) -> None:
    before = {path.name: path.read_bytes() for path in authority.iterdir()}
    with pytest.raises(AlreadyExistsError):
        make_authority(authority, "again", WORLD)
    with pytest.raises(AlreadyExistsError, match="--overwrite"):
        issue(authority, Use.CLIENT, "other", WORLD)
    assert {path.name: path.read_bytes() for path in authority.iterdir()} == before
    issue(authority, Use.CLIENT, "other", WORLD, overwrite=True)
    shake(client_context(authority), server_context(authority))


def test_a_certificate_for_another_machine_comes_in_a_directory_of_its_own(authority: Path, tmp_path: Path) -> None:
    issue(authority, Use.CLIENT, "desktop", WORLD, out=tmp_path / "desktop")
    assert sorted(path.name for path in (tmp_path / "desktop").iterdir()) == ["ca.crt", "client.crt", "client.key"]
    shake(client_context(tmp_path / "desktop"), server_context(authority))


@pytest.mark.parametrize("hosts", [[], ["bücher.example"]])
def test_a_server_without_hosts_or_with_one_that_cannot_be_is_refused(authority: Path, hosts: list[str]) -> None:
    with pytest.raises(UsageError):
        issue(authority, Use.SERVER, "server", WORLD, hosts=hosts, overwrite=True)


def test_what_is_missing_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="tls init"):
        issue(tmp_path, Use.CLIENT, "laptop", WORLD)
    with pytest.raises(NotFoundError, match=r"server.crt is not there; `blockyard tls init`"):
        server_context(tmp_path)


def test_the_verbs_make_what_both_ends_need(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "tls"
    assert run(["tls", "init", str(directory), "--host", "storage.example"]) == 0
    assert run(["tls", "issue", str(directory), "--client", "desktop", "--out", str(tmp_path / "desktop")]) == 0
    shake(client_context(tmp_path / "desktop"), server_context(directory))
    assert run(["tls", "init", str(directory)]) == 4
    assert run(["tls", "issue", str(directory), "--client", "a", "--server", "b"]) == 2
    assert "PRIVATE" not in capsys.readouterr().out
