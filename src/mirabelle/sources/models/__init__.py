"""Load models from Python factories, and from files of PyTorch, Keras, ONNX and transformers."""
