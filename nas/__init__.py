"""Hardware-aware search for small convolutional networks.

`import nas` brings in none of torch, TVM and Optuna; the parts that need them import them.
"""

__version__ = "0.1.0"
