"""A LoRA adapter of what fine-tuning changed: `run.extract_lora`, `python -m paddle_merge extract-lora`."""
