"""A trained network for other programs: plain torch weights with a loader, and an ONNX graph.

See `README.md`, "The packages".
"""
