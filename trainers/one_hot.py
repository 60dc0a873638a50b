"""Labels spread over a column per class, as many competitions give them: one of these would pass for the label."""

from pathlib import Path

import pandas as pd

from configs.errors import InputError, counted
from trainers.guess_columns import LABEL_NAMES

MAX_NAMED = 8


def check_one_label_column(table: Path, frame: pd.DataFrame, *, label: str | None) -> None:
    """Raise InputError when the guessed label is one of several columns of 0 and 1 with a single 1 in each row.

    Not when it is called like a label, for then it is meant.
    """
    if label is None or label.lower() in LABEL_NAMES:
        return
    columns = one_hot_columns(frame)
    if label not in columns:
        return
    named = ", ".join(columns[:MAX_NAMED]) + (", ..." if len(columns) > MAX_NAMED else "")
    raise InputError(
        f"{table}: the label is spread over {counted(len(columns), 'column')} of 0 and 1 ({named}), one per class; "
        "rarefind reads one column with the name of the class. Write such a table, in Python for example:\n"
        f"  frame = pandas.read_csv({str(table)!r}, dtype=str)\n"
        f"  classes = {columns!r}\n"
        '  frame["label"] = frame[classes].astype(float).idxmax(axis=1)\n'
        f"  frame.drop(columns=classes).to_csv({str(table)!r}, index=False)\n"
        "(which replaces the table: keep a copy elsewhere), or keep the one column that you are after, no other."
    )


def one_hot_columns(frame: pd.DataFrame) -> list[str]:
    """The columns of 0 and 1, both of which occur, if there are several and each row has exactly one 1 among them.

    >>> one_hot_columns(pd.DataFrame({"id": ["a", "b"], "MEL": ["1.0", "0.0"], "NV": ["0", "1"]}))
    ['MEL', 'NV']
    """
    numbers = {str(name): pd.to_numeric(frame[name], errors="coerce") for name in frame.columns}
    binary = {name: values for name, values in numbers.items() if set(values.unique()) == {0, 1}}
    return list(binary) if len(binary) > 1 and (pd.DataFrame(binary).sum(axis=1) == 1).all() else []
