"""Compute with language models by the library in which people use them.

models           choose a library, and open a candidate with it
likelihood       log-likelihoods of texts, in batches
torch_models     transformers
paddle_models    PaddleFormers and PaddleNLP, which have the same interface
"""
