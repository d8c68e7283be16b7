from nas.errors import printable


def test_control_characters_are_written_as_escapes():
    assert printable("plain µ text\nline") == "plain µ text\nline"
    assert printable("a\x1b[2Jb\x9bc\u2028d\u202ee") == ("a\\x1b[2Jb\\x9bc\\u2028d\\u202ee")
