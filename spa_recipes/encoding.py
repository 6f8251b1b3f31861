"""What a text file is that is not UTF-8, and how to mend it."""

import codecs

_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_HEAD, _FEW = 400, 8
"""Bytes that are looked at, and those that are too few to tell."""

_OTHER = "WINDOWS-1252"
"""What a file most likely is that has single bytes which are not UTF-8: this, or Latin-1, which is nearly the same."""


def wide_encoding(head: bytes) -> str:
    """`UTF-16` or `UTF-32` where the first bytes of a file say so, by a mark or by zeros in every other place."""
    for mark, name in _MARKS.items():  # that of UTF-32 begins with that of UTF-16
        if head.startswith(mark):
            return name
    head = head[:_HEAD]
    zeros = [head[place::2].count(0) for place in (0, 1)]
    if len(head) < _FEW or max(zeros) < len(head) // 4:
        return ""
    return "UTF-32" if min(zeros) > len(head) // 8 else "UTF-16"


def remedy(encoding: str = _OTHER) -> str:
    """How to make a file in another encoding one in UTF-8."""
    return f"save the file as UTF-8, such as by `iconv -f {encoding} -t UTF-8`"
