"""What runs the exported model: ONNX out, ONNX Runtime, latency, and gates that two forms agree."""
