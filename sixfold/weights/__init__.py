"""Model files as named tensors, memory-mapped and checked: GGUF files and Hugging Face safetensors directories."""
