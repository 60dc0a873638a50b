"""The section of the config about clusters of frozen features. Nothing here imports torch."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator

from configs.sections import Count, NonNegative, OpenFraction, Positive, Section

MethodName = Literal["kmeans", "minibatch_kmeans", "gaussian_mixture", "dbscan", "hdbscan"]
MapName = Literal["pca", "tsne", "umap"]
SeveralClusters = Annotated[int, Field(ge=2)]

COUNTED = ("num_clusters", "candidates", "silhouette_rows")  # settings of the methods that are told a number
# The settings that decide the clusters of a method, besides those of the features.
METHOD_SETTINGS: dict[MethodName, tuple[str, ...]] = {
    "kmeans": (*COUNTED, "restarts"),
    "minibatch_kmeans": (*COUNTED, "restarts"),
    "gaussian_mixture": (*COUNTED, "covariance", "sample_rows"),
    "dbscan": ("eps", "min_samples", "sample_rows", "silhouette_rows"),
    "hdbscan": ("min_cluster_size", "min_samples", "sample_rows", "silhouette_rows"),
}


class ClusterConfig(Section):
    """Clusters of the features that `rarefind embed` makes: found without labels, judged with them."""

    methods: list[MethodName] = Field(
        default=["kmeans", "gaussian_mixture", "hdbscan"],
        min_length=1,
        description=f"which are tried, of {', '.join(get_args(MethodName))}",
    )
    num_clusters: SeveralClusters | Literal["many", "auto"] = Field(
        "many",
        description="of kmeans, minibatch_kmeans and gaussian_mixture; auto = the best of `candidates`, by the "
        "silhouette on a sample of rows, for mixtures by the BIC; many = 100 with 20 images each or more (mixtures: "
        "auto), because a rare class has no cluster of its own among few",
    )
    candidates: list[SeveralClusters] = Field(
        default=[5, 10, 20, 50], min_length=1, description="numbers of clusters that auto tries"
    )
    normalise: bool = Field(
        True, description="first bring the features of an image to (L2) length 1, so that angles count"
    )
    pca: Annotated[float, Field(gt=0.0)] | None = Field(
        50.0, description="then reduce to so many principal components, or below 1 to a share of variance; null = none"
    )
    whiten: bool = Field(False, description="and give every component the same variance")
    restarts: Count = Field(
        3, description="kmeans, minibatch_kmeans: fits from other centres, of which the best is kept"
    )
    covariance: Literal["full", "tied", "diag", "spherical"] = Field(
        "full", description="gaussian_mixture: shape of the components"
    )
    eps: Positive | None = Field(
        None, description="dbscan: radius of a neighbourhood; null = at the knee of the sorted k-distances"
    )
    min_samples: Count = Field(
        10, description="dbscan, hdbscan: images that make a neighbourhood dense, itself included"
    )
    min_cluster_size: SeveralClusters = Field(20, description="hdbscan: what is smaller is noise")
    sample_rows: Annotated[int, Field(ge=100)] = Field(
        10_000,
        description="gaussian_mixture, dbscan, hdbscan: fitted on at most so many images, drawn at random; the others "
        "join the most probable component, or the cluster of the nearest of those",
    )
    silhouette_rows: Annotated[int, Field(ge=100)] = Field(5_000, description="images that the silhouette is taken of")
    maps: list[MapName] = Field(
        default=["pca", "tsne", "umap"], description="pictures; umap only where the package umap-learn is installed"
    )
    map_rows: Annotated[int, Field(ge=100)] = Field(
        8_000, description="images in a picture: the labelled ones, then others at random"
    )
    perplexity: Positive = Field(30.0, description="tsne: about how many neighbours an image keeps")
    smoothing: NonNegative = Field(
        10.0, description="a cluster's share of positives is taken as if so many more images had the overall share"
    )
    best: list[Count] = Field(default=[1, 3, 5, 10], description="what so many best clusters hold is reported")
    reviewed: list[OpenFraction] = Field(
        default=[0.01, 0.05, 0.1, 0.2],
        min_length=1,
        description="recall is reported where this share of the images is reviewed, the best clusters first",
    )

    @field_validator("num_clusters", mode="wrap")
    @classmethod
    def _one_message(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        try:
            return check(value)
        except ValidationError:  # one for each type that it could have been
            raise ValueError("expected a number of clusters (2 or more), many or auto") from None

    @field_validator("pca")
    @classmethod
    def _share_or_number(cls, value: float | None) -> float | None:
        if value is not None and value >= 1 and value != int(value):
            raise ValueError("expected a whole number of components, or a share of variance below 1")
        return value

    @field_validator("methods", "maps", "candidates", "best", "reviewed")
    @classmethod
    def _each_once(cls, values: list) -> list:
        return sorted(set(values), key=values.index)

    @property
    def idle(self) -> dict[str, str]:
        """Fields that change nothing beside what others are set to, and what they would take."""
        idle: dict[str, str] = {}
        for key in {key for settings in METHOD_SETTINGS.values() for key in settings}:
            takers = [method for method, settings in METHOD_SETTINGS.items() if key in settings]
            if not set(takers) & set(self.methods):
                idle[key] = f"cluster.methods with {' or '.join(takers)}"
        if "candidates" not in idle and not self._tries_candidates:
            idle["candidates"] = "cluster.num_clusters: auto (or many, with gaussian_mixture in cluster.methods)"
        if "tsne" not in self.maps:
            idle["perplexity"] = "cluster.maps with tsne"
        if not self.maps:
            idle["map_rows"] = f"cluster.maps with {' or '.join(get_args(MapName))}"
        return idle

    @property
    def _tries_candidates(self) -> bool:
        if self.num_clusters == "many":  # which mixtures take for auto
            return "gaussian_mixture" in self.methods
        return self.num_clusters == "auto"
