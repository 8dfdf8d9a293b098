"""Dagster resources: where tables and models live, and what computes."""

import dagster as dg

from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings


class LakeResource(dg.ConfigurableResource):
    """Versioned tables. `uri` empty = `$STFM_LAKE`, else `$STFM_HOME/lake`."""

    uri: str = ""

    def open(self) -> Lake:
        return Lake(self.uri or Settings().lake_uri)


class TrackingResource(dg.ConfigurableResource):
    """Where models and runs are tracked. `uri` empty = `$MLFLOW_TRACKING_URI`, else `$STFM_HOME/mlflow.db`."""

    uri: str = ""

    def settings(self) -> Settings:
        import os

        if self.uri:
            os.environ["MLFLOW_TRACKING_URI"] = self.uri
        return Settings()


class ComputeResource(dg.ConfigurableResource):
    """What trains: `auto`, `cpu`, `cuda` or `mps`, how much (`quick`, `standard`, `full`), and from where.

    `start`: `warm` from the champion's weights, `scratch`, or empty for whichever is there. `new_split` has the split
    drawn anew.
    """

    device: str = "auto"
    budget: str = "quick"
    start: str = ""
    new_split: bool = False


RESOURCES = {
    "lake": LakeResource(),
    "tracking": TrackingResource(),
    "compute": ComputeResource.configure_at_launch(),
}
