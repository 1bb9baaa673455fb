"""The hubs that `push` uploads to, one file each, all with the methods of hub.Hub: by the name that --to takes."""

HUBS = {"huggingface": "HuggingFace", "aistudio": "AIStudio", "modelscope": "ModelScope"}  # module -> class
