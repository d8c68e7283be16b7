"""Arm Ethos-U NPUs, estimated by the cycle model of Arm's compiler Vela; see `runtime`.

Importing this imports no Vela.
"""
