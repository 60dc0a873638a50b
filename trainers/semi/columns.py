"""Which columns of a tensor mean what: outputs of several heads, and what a semi-supervised step learns from.

A second head on the same features is the same as more columns of the classifier, so a network has one classifier with
the columns of every head side by side; those of heads that do not predict are removed from the weights that are kept.
"""

from dataclasses import dataclass

from torch import Tensor, nn, no_grad

from configs.errors import InputError


def widen_classifier(model: nn.Module, extra: int, name: str) -> str:
    """Give a timm network `extra` more outputs after its own, which keep their weights; the classifier's name in it.

    Raises InputError when the network's classifier is no linear layer.
    """
    classifier = model.get_classifier()  # type: ignore[operator]
    where = next((key for key, module in model.named_modules() if module is classifier), "")
    if not isinstance(classifier, nn.Linear) or not where:
        raise InputError(
            f"models: {name!r} ends in a {type(classifier).__name__} and not in one linear layer, so it cannot have "
            "semi.balanced_head or semi.background_classes; leave them out or choose another backbone"
        )
    own = classifier.out_features
    wide = nn.Linear(classifier.in_features, own + extra, bias=classifier.bias is not None)
    with no_grad():
        wide.weight[:own] = classifier.weight
        if classifier.bias is not None:
            wide.bias[:own] = classifier.bias
    parent, _, child = where.rpartition(".")
    setattr(model.get_submodule(parent), child, wide.to(classifier.weight.device))
    return where


def narrowed(weights: dict[str, Tensor], classifier: str, columns: slice) -> dict[str, Tensor]:
    """The weights of the network that has only these columns of the classifier."""
    own = {f"{classifier}.weight", f"{classifier}.bias"}
    return {key: value[columns].clone() if key in own else value for key, value in weights.items()}


@dataclass(frozen=True)
class OutputColumns:
    """The outputs of the heads: the network's own, those of the balanced head if there is one, one per cluster."""

    own: slice
    balanced: slice
    clusters: slice

    @classmethod
    def build(cls, num_outputs: int, *, balanced_head: bool, num_clusters: int) -> "OutputColumns":
        """The columns of these heads, side by side."""
        after = num_outputs * (2 if balanced_head else 1)
        return cls(slice(0, num_outputs), slice(num_outputs, after), slice(after, after + num_clusters))

    @property
    def num_extra(self) -> int:
        """Outputs beyond the network's own."""
        return self.clusters.stop - self.own.stop


class StepColumns:
    """What one step learns from, a row per image: targets of both heads, what each loss counts, and the cluster."""

    def __init__(self, num_outputs: int) -> None:
        self.target = slice(0, num_outputs)
        self.balanced_target = slice(num_outputs, 2 * num_outputs)
        self.width = 2 * num_outputs + 6
        self.labelled, self.pool, self.balanced, self.selected, self.is_pool, self.cluster = range(
            2 * num_outputs, self.width
        )

    def empty(self, num_rows: int, like: Tensor) -> Tensor:
        """Zeros (rows, width)."""
        return like.new_zeros(num_rows, self.width)
