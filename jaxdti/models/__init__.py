"""Flax modules: networks on pairs, on feature vectors and on expression profiles."""

from typing import TYPE_CHECKING

from jaxdti.lazy import lazy

if TYPE_CHECKING:
    from jaxdti.models.autoencoders import Autoencoder
    from jaxdti.models.codeae import DomainSeparation
    from jaxdti.models.drugban import DrugBAN
    from jaxdti.models.fnn import FNN

__all__ = ["Autoencoder", "DomainSeparation", "DrugBAN", "FNN"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "jaxdti.models.drugban": ("DrugBAN",),
        "jaxdti.models.fnn": ("FNN",),
        "jaxdti.models.autoencoders": ("Autoencoder",),
        "jaxdti.models.codeae": ("DomainSeparation",),
    },
)
