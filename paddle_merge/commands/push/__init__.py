"""The command `push`: upload a checkpoint or adapter to Hugging Face, AI Studio or ModelScope."""
