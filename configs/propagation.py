"""The section of the config about label propagation. Nothing here imports torch."""

from typing import Annotated, Literal

from pydantic import Field

from configs.sections import Count, OpenFraction, Section


class GraphConfig(Section):
    """The neighbour graph: every image is tied to those that it resembles most."""

    num_neighbours: Count = Field(15, description="nearest images that each is tied to")
    metric: Literal["cosine", "euclidean"] = Field("cosine", description="distance between features")
    search: Literal["auto", "exact", "approximate"] = Field(
        "auto", description="approximate needs faiss (extra knn); auto = exact up to 200,000 images"
    )
    weights: Literal["self_tuning", "gaussian", "connectivity"] = Field(
        "self_tuning",
        description="of a tie: exp(-d^2 / (s_i s_j)) with each image's own scale, exp(-d^2 / (2 s^2)), or 1",
    )
    ties: Literal["union", "mutual"] = Field(
        "union", description="union = one of two images is among the other's nearest; mutual = each is"
    )


class PropagateConfig(Section):
    """Labels that spread to unlabelled images along a neighbour graph of frozen features."""

    graph: GraphConfig = GraphConfig()
    method: Literal["spreading", "propagation"] = Field(
        "spreading", description="spreading lets labels give way to what is around them; propagation holds them fast"
    )
    alpha: OpenFraction = Field(0.5, description="spreading: how much an image takes from its neighbours")
    balance: Literal["none", "mass", "seeds"] = Field(
        "none",
        description="none = as the labels spread; mass = the classes get the labels' shares of all mass (class-mass "
        "normalisation); seeds = the labels of every class weigh the same in all, which finds more of rare classes",
    )
    tolerance: Annotated[float, Field(gt=0.0, le=1e-2)] = Field(
        1e-8, description="of the solver: norm of the residual against that of the right side"
    )

    @property
    def idle(self) -> dict[str, str]:
        """Fields that change nothing beside what others are set to, and what they would take."""
        return {} if self.method == "spreading" else {"alpha": "propagate.method: spreading"}
