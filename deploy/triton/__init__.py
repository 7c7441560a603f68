"""NVIDIA Triton without docker: the server of the nvidia-pytriton wheel, started, watched and stopped.

The standard library is all that this package needs.
"""
