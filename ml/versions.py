"""Which versions of what made a pack or a report."""

import importlib.metadata
import platform


def installed_versions(*more: str) -> dict[str, str]:
    """Version by package: what every pack and report is made with, and `more`.

    Asked before anything is trained, as a package that is missing must not show after hours.
    """
    packages = ("torch", "numpy", "pillow", *more, "reasonable-mistakes")
    versions = {package: importlib.metadata.version(package) for package in packages}
    return {"python": platform.python_version(), **versions}
