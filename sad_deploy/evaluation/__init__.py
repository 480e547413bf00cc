"""Attacks on the file that is shipped, and what they leave: worst case first, beside the undefended network.

``subject``, ``assembly``   what is attacked and with which attack graphs
``threat``, ``losses``, ``attacks``, ``oracles``   the attacks, in NumPy; no torch
``plan``, ``work``, ``campaign``, ``evaluate``   which are run, in which processes, in which order
``outcome``, ``checks``, ``planted``   the figures, and how far to trust them
``record``, ``report``   what is kept; ``base`` alone needs PyTorch
"""
