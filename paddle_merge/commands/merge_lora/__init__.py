"""The command `merge-lora`: merge LoRA adapters into one LoRA adapter."""
