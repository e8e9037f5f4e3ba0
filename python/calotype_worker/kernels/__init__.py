"""Triton kernels for what a UNet or a VAE does beside convolutions, matrix products and attention.

These operations take as long as the memory takes to be read and written, so each kernel does in one pass what PyTorch
does in several. Each family has a file with its kernel, a module or function that uses it where `serve` says so, and
PyTorch's own operations for everywhere else.
"""
