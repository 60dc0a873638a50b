import pytest

from configs.errors import counted


@pytest.mark.parametrize(
    ("number", "words", "expected"),
    [
        (0, ("row",), "0 rows"),
        (1, ("row",), "1 row"),
        (2, ("class", "classes"), "2 classes"),
        (1, ("is", "are"), "1 is"),
    ],
)
def test_one_is_singular_and_all_else_plural(number, words, expected):
    assert counted(number, *words) == expected
