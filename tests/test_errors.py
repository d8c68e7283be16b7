from nas.errors import (
    ExportError,
    NasError,
    RequestError,
    as_nas_error,
    first_line,
    printable,
)


def test_printable_escapes_control_characters():
    assert printable("plain µ text\nline") == "plain µ text\nline"
    assert printable("a\x1b[2Jb\x9bc\u2028d\u202ee") == ("a\\x1b[2Jb\\x9bc\\u2028d\\u202ee")


def test_text_of_error_is_message_and_remedy():
    assert str(NasError("No table.", remedy="Build one.")) == "No table. Build one."
    assert str(NasError("No table.")) == "No table."
    assert (NasError("").exit_status, RequestError("").exit_status) == (1, 2)


def test_first_line_names_the_class_of_the_error():
    assert first_line(ValueError("\nbad value\nmore")) == "ValueError: bad value"
    assert first_line(KeyError()) == "KeyError"
    assert len(first_line(ValueError("x" * 1000))) == 500


def test_any_error_becomes_one_of_ours_that_names_it():
    wrong = RequestError("wrong")
    assert as_nas_error(wrong, ExportError) is wrong
    other = MemoryError()
    named = as_nas_error(other, ExportError)
    assert (type(named), named.message, named.__cause__) == (ExportError, "MemoryError.", other)
