"""Losses between a labelled source domain and an unlabelled target domain, as pure functions.

They are imported here and now, not at their first use: ``mmd``, ``coral`` and ``mcc`` are functions in modules of their
own names, and whichever is imported last would be what ``jaxdti.adaptation.mmd`` means.
"""

from jaxdti.adaptation.cdan import cdan_loss
from jaxdti.adaptation.coral import coral
from jaxdti.adaptation.dann import dann_loss
from jaxdti.adaptation.domains import Domains
from jaxdti.adaptation.mcc import mcc
from jaxdti.adaptation.mmd import mmd
from jaxdti.adaptation.pada import pada_loss
from jaxdti.adaptation.san import san_loss

__all__ = ["Domains", "cdan_loss", "coral", "dann_loss", "mcc", "mmd", "pada_loss", "san_loss"]
