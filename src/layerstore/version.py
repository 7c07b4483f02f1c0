"""The version of the package, for what stands below its public names."""

VERSION = "0.2.0"
