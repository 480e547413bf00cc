"""Tests of ``sad_runtime``. A package, so that its modules may be called as those of the other rooms."""
