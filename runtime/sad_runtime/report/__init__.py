"""The report: one self-contained HTML page about a run, with a sample of its pictures.

Pictures are kept while the run goes on, in a file beside the page; the page is written at its end from the
journal. May import what the runtime may; the page itself loads nothing from anywhere.
"""

from __future__ import annotations

from .report import Report

__all__ = ["Report"]
