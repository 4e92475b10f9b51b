//! Readers of model weights on disk: safetensors shards, PyTorch `.bin`, GGUF.
