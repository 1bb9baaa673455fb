"""Read and write each format of weights: one module per format, and modules on what formats have in common.

safetensors  pdparams    formats that are read and written
torch_bin  flex          formats that are only read: torch's .bin files, Paddle's distributed checkpoints
parallel                 files that tensor- and pipeline-parallel training saved one per rank
torch_words torch_legacy what torch pickles around tensors; the frame of its files before 1.6
pickles  standins        the pickle instructions of .pdparams, .bin and flex files, and what they make
arrays                   NumPy arrays in pickles
folder  any              which files of a folder are weights; which format a file has
header  naming           what a format writes around the weights; what its files are called
"""
