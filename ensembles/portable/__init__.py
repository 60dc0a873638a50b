"""What travels with an exported ensemble, as it is: no module here imports more than the packages that scoring needs.

Those are torch, timm, numpy, Pillow and safetensors, and the modules of this project that `ensembles.export` copies.
"""
