"""Drug-protein interaction prediction when training and test data come from different distributions.

Importing the package is cheap: JAX, RDKit and scikit-learn are loaded by the modules that use them.
"""

from jaxdti.versions import avoid_faulty_fusion, check_jax_version

__version__ = "0.1.0"

check_jax_version()
avoid_faulty_fusion()
