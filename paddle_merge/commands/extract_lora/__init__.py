"""The command `extract-lora`: make a LoRA adapter from a fine-tuned model and its base."""
