import subprocess

import pytest

from lstmlm.errors import in_shell, printable


def test_a_byte_that_is_no_text() -> None:
    """A byte of a file's name that is no text is shown as that byte, not as what stands for it in Python."""
    assert printable("x\udcff\u202e\x1b\ud800é") == r"x\xff\u202e\x1b\ud800é"


def test_words_that_a_shell_reads() -> None:
    """A command that is offered can be pasted: bash reads what is not printable from its escapes."""
    assert in_shell("train", "my text", "it's") == """train 'my text' 'it'"'"'s'"""
    assert in_shell("r\udcff") == r"$'r\xff'"


@pytest.mark.skipif("not os.path.exists('/bin/bash')", reason="no bash")
@pytest.mark.parametrize("word", ["r\udcffa'\\n", "a\n\t\x01", "\x85\xad\u202eé\U000e0001"])
def test_bash_reads_it(word: str) -> None:
    """What bash makes of a word is the word, byte for byte."""
    found = subprocess.run(
        ["/bin/bash", "-c", f"printf %s {in_shell(word)}"], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )

    assert found.stdout == word.encode("utf-8", "surrogateescape")
