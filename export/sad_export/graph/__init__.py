"""The ground floor: an ONNX graph, its values and nodes, and how to write new ones as formulas.

Everything that reads or writes a graph stands on this room; it imports nothing of the others. May import
numpy and onnx-ir.
"""
