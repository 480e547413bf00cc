"""Rename the indices of Einsum to lower-case letters, the only ones that TensorRT reads.

1. Indices become a, b, c, … in the order of their appearance; ellipses and spaces are left out of it.
2. An equation in lower case, or with more than 26 indices, is left.
"""

from __future__ import annotations

import string

import onnx_ir as ir


class EinsumLettersPass(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename in place."""
        modified = False
        for node in model.graph:
            if node.op_type != "Einsum" or node.domain not in ("", "ai.onnx"):
                continue
            equation = node.attributes.get_string("equation", "")
            letters = list(dict.fromkeys(c for c in equation if c in string.ascii_letters))
            if equation == equation.lower() or len(letters) > len(string.ascii_lowercase):
                continue
            renamed = equation.translate(
                str.maketrans("".join(letters), string.ascii_lowercase[: len(letters)])
            )
            # Without an arrow the result is in alphabetical order, capitals first.
            if "->" not in equation:
                once = sorted(c for c in letters if equation.count(c) == 1)
                result = "".join(string.ascii_lowercase[letters.index(c)] for c in once)
                renamed += "->" + ("..." if "..." in equation else "") + result
            node.attributes["equation"] = ir.AttrString("equation", renamed)
            modified = True
        return ir.passes.PassResult(model, modified=modified)
