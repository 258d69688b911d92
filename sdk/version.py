"""The version of this SDK and of its tools; packaging reads it from here."""

VERSION = "0.1.0"
