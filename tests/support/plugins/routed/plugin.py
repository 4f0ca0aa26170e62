from routed.autoencoder import Autoencoder
from routed.policy import Router


def register(registry):
    registry.register_module("router", Router)
    registry.register_module("autoencoder", Autoencoder)
