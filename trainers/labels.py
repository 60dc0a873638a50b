"""The classes of a set of labels, and which of two is the positive one."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from configs.errors import InputError, listed


def resolve_classes(
    labels: Sequence[str],
    *,
    known: Sequence[str] | None,
    positive_label: str | None,
    where: str,
    rows_of: Callable[[Collection[str]], list[str]],
) -> tuple[list[str], str | None]:
    """The classes, [negative, positive] when there are two, and the positive label (None in multi-class work).

    `labels` are those of the labelled rows, all of them in `known` if that is given. Without `positive_label` two
    classes must be exactly 0 and 1, which makes 1 the positive one. `rows_of` says in words where the rows with some
    labels are. Raises InputError with the counts.
    """
    counts = Counter(labels)
    if known is not None and len(set(known)) != len(known):
        raise InputError(f"data.labels names a class twice: {', '.join(known)}")
    classes = list(known) if known is not None else sorted(counts)
    found = ", ".join(f"{name!r} ({counts[name]})" for name in classes)
    if not counts:
        raise InputError(
            f"{where}: no row has a label; labelled images are needed (data.columns.label names the column)"
        )
    if positive_label is None and set(classes) <= {"0", "1"}:
        positive_label = "1"
    if positive_label is not None:
        if len(classes) > 2:
            rarest = _rarest_unexpected(counts, positive_label)
            hint = f". Is {' or '.join(map(repr, rarest))} a typo?\n{listed(rows_of(rarest))}" if rarest else ""
            raise InputError(
                f"{where}: data.positive_label is {positive_label!r}, but there are {len(classes)} classes: {found}; "
                f"leave it out for multi-class work, or give the images one of two labels{hint}"
            )
        if known is not None and positive_label not in classes:
            raise InputError(f"data.positive_label {positive_label!r} is not one of data.labels: {', '.join(classes)}")
        if not counts[positive_label]:
            raise InputError(
                f"{where}: no row is labelled with the positive class {positive_label!r}; found: {found}. Set "
                "data.positive_label to one of them, or label some positives"
            )
        negatives = [name for name in classes if name != positive_label]
        if not negatives or not counts[negatives[0]]:
            raise InputError(f"{where}: every labelled row is {positive_label!r}; negatives are needed too")
        return [negatives[0], positive_label], positive_label
    if len(classes) == 1:
        raise InputError(f"{where}: the only class is {found}; at least two are needed")
    if len(classes) == 2:
        rarer = min(classes, key=lambda name: counts[name])
        raise InputError(
            f"{where}: two classes, {found}, and data.positive_label does not say which is to be found; "
            f"the rarer one is {rarer!r}"
        )
    absent = [name for name in classes if not counts[name]]
    if absent:
        raise InputError(f"{where}: no row has {', '.join(map(repr, absent))} of data.labels; found: {found}")
    return classes, None


def _rarest_unexpected(counts: Counter[str], positive_label: str) -> list[str]:
    """The labels with the fewest rows, besides the positive one and the commonest other."""
    unexpected = [(count, name) for name, count in counts.most_common() if name != positive_label][1:]
    fewest = min((count for count, _ in unexpected), default=0)
    return [name for count, name in unexpected if count == fewest]
