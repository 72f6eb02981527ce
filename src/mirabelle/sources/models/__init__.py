"""Models: Python factories, and files of PyTorch, Keras, ONNX and transformers."""
