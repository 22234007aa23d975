"""The bundle: a folder with all a replica needs, verified before it serves. Loading it needs no torch and no pickle."""

from degre_prod.bundle.decoder import Decoded
from degre_prod.bundle.load import Bundle, load_bundle
from degre_prod.bundle.manifest import Manifest

__all__ = ["Bundle", "Decoded", "Manifest", "load_bundle"]
