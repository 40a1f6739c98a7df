"""Programs that outlive fuser: a fused graph as an exported MLX function, as Python source, as ONNX."""
