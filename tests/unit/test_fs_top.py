"""`blockyard fs top`: figures of a mount as rates."""

import json

from click.testing import CliRunner

from core.cli.main import run
from metadata_server.cli.top import Rate, rates, top


def figures(**operations):
    return {
        "operations": {
            name: {"count": count, "errors": errors, "seconds": seconds, "p50_us": 8, "p99_us": 64}
            for name, (count, errors, seconds) in operations.items()
        }
    }


def test_the_busiest_operation_comes_first_and_idle_ones_are_left_out():
    before = figures(read=(10, 0, 0.5), write=(5, 0, 0.125), lookup=(3, 1, 0.0))
    after = figures(read=(30, 0, 0.75), write=(5, 0, 0.125), lookup=(3, 101, 0.0), create=(4, 0, 0.5))
    assert rates(before, after, 2.0) == [
        Rate("lookup", 50.0, 0.0, 8, 64, 100),
        Rate("read", 10.0, 12500.0, 8, 64, 0),
        Rate("create", 2.0, 125000.0, 8, 64, 0),
    ]


def test_a_directory_that_is_no_mount_is_refused_in_a_sentence(tmp_path, capsys):
    assert run(["fs", "top", str(tmp_path), "--count", "1"]) == 2
    assert "no mount of a filesystem" in capsys.readouterr().err


def test_it_looks_as_often_as_it_is_asked_to_and_prints_json_for_programs(tmp_path):
    (tmp_path / ".blockyard").mkdir()
    (tmp_path / ".blockyard" / "stats").write_text(json.dumps(figures(read=(1, 0, 0.1))))
    done = CliRunner().invoke(top, [str(tmp_path), "--count", "2", "--interval", "0.1", "--json"])
    assert done.exit_code == 0
    assert done.output.split() == ["[]", "[]"]
