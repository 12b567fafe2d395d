"""What a wheel carries beside the package: an editable install finds it in the checkout."""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

STUDY = ("data", "grids", "notebooks", "constraints.txt", "constraints-lowest.txt", "CITATION.cff")


class StudyInside(BuildHookInterface):
    """What `ROOT` of toastlib/data/catalog.py is to hold goes into the wheel's package."""

    def initialize(self, version, build_data):
        """Called before a wheel is built, ``"standard"`` or ``"editable"``."""
        if version != "editable":
            build_data["force_include"] |= {name: f"toastlib/study/{name}" for name in STUDY}
