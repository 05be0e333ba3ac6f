"""Wrong options are said like all other errors: in one line, with the way to the right ones."""

import pytest

from tests.commands import refused, run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ask", "x", "--temperature", "warm"), "'--temperature'"),
        (("ask", "x", "--seed", "abc"), "'--seed'"),
        (("ask", "x", "--n", "0"), "'--n'"),
        (("ask", "x", "--max-tokens", "0"), "'--max-tokens'"),
        (("ask", "x", "--nope"), "no such option: --nope"),
        (("chat", "--temperatur", "1"), "no such option: --temperatur"),
        (("convert",), "missing argument"),
        (("doctor", "a", "b"), "got unexpected extra argument(s) (a b)"),
        (("nothing",), "no such command 'nothing'"),
        (("--nothing",), "no such option: --nothing"),
        (("plan", "--memory"), "option '--memory' requires an argument"),
    ],
)
def test_one_line(arguments: tuple[str, ...], words: str) -> None:
    message = refused(*arguments)
    assert words in message
    own_help = f"; see: mlx-llama4 {arguments[0]} -h"
    assert message.endswith((own_help, "; see: mlx-llama4 -h"))


def test_in_a_process_of_its_own() -> None:
    result = run("ask", "x", "--nope")
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: no such option: --nope")


def test_help_is_help() -> None:
    for arguments in ((), ("-h",), ("ask", "-h")):
        assert "Usage: " in run(*arguments).stdout + run(*arguments).stderr
