"""The input of the golden table: strings and numbers that readers of YAML disagree about, as servepipe writes them.

To make the table again (needs Go, and its module proxy once), in this folder:

    python cases.py | go run . > table.json

`test_golden.py` holds servepipe's writer and reader against the table; it needs no Go.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

from servepipe.api.yaml_scalars import format_float, format_string

SPELLINGS = ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf", "infinity", "none", "undefined"]
SPACED = [
    *("", " ", "  ", " a", "a ", "a b", "a  b", "1 000", "- a", "? a", ": a", "a: b", "a : b", "a #b", "a# b", "# a"),
    *("& a", "* a", "! a", "% a", "@ a", "| a", "> a", "[a, b]", "{a: b}", "a, b", "--- a", "... a", "null ", " true"),
    *("true # no", "\t", "\ta", "a\t", "a\tb", "\n", "a\n", "\na", "a\nb", "a\n\nb", "a\n b", "a\r\nb", "\r", "a\rb"),
    *("a: |\n  b", "'a': \"b\"", "\\", "\\\\", "a\\", '"\\"', "<script>&amp;</script>"),
]
CODES = [
    *range(0x20),
    *(0x7F, 0x80, 0x84, 0x85, 0x86, 0x9F, 0xA0, 0xA1, 0xAD, 0xFF, 0x061C, 0x180E, 0x1680, 0x2000, 0x200B, 0x200D),
    *(0x200E, 0x202A, 0x202E, 0x2028, 0x2029, 0x2060, 0x2066, 0x3000, 0xD7FF, 0xE000, 0xFDD0, 0xFE0F, 0xFEFF, 0xFFF9),
    *(0xFFFC, 0xFFFD, 0xFFFE, 0xFFFF, 0x10000, 0x1F600, 0x1FFFE, 0xE0001, 0x10FFFF),
]
LONG = ["x" * 130, "word " * 40, "x" * 1100, "x " * 600, "1" * 400, '"' * 50, "é" * 200]

FLOATS = [0.5, -0.5, 1.5, 0.1, 1 / 3, 1e-5, 5e-05, 1.5e-06, 1e-06, 123456.789, 1234567890123456.7, 4503599627370495.5]
JSON_NUMBERS = [
    *("0", "1", "-1", "1.0", "-0.0", "1.5", "1e3", "1E3", "1e21", "1e+21", "1e20", "123456789012345680000", "0.1"),
    *("9223372036854775807", "9223372036854775808", "-9223372036854775809", "18446744073709551615"),
    *("18446744073709551616", "1e-6", "1e-7", "0.00005", "5e-324", "1e308"),
]


def texts() -> list[str]:
    """All strings of the table, each once."""
    words = (Path(__file__).parent / "words.txt").read_text(encoding="utf-8").split()
    spelled = [form for word in SPELLINGS for form in (word, word.capitalize(), word.upper(), f"{word}s")]
    mantissas = ("1", "0", "012", "1.5", ".5", "1.")
    made = ["".join(parts) for parts in itertools.product(("", "-"), mantissas, ("", "e5", "E+5"))]
    around = [form for character in map(chr, CODES) for form in (character, f"a{character}b")]
    return list(dict.fromkeys([*spelled, *words, *made, *SPACED, *around, *LONG]))


def main() -> None:
    """Print the cases, one JSON object a line."""
    for text in texts():
        case = {"text": text, "ours": format_string(text, in_flow=False), "oursFlow": format_string(text, in_flow=True)}
        print(json.dumps(case))
    for number in FLOATS:
        print(json.dumps({"number": json.dumps(number), "ours": format_float(number)}))
    for digits in JSON_NUMBERS:
        print(json.dumps({"number": digits}))


if __name__ == "__main__":
    sys.exit(main())
