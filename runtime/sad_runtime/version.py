"""The one version of the distribution, read by the build, the manifest and ``sad-deploy --version``."""

__version__ = "0.1.0"
