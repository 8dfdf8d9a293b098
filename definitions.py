"""The code location: everything in assets/ with the resources it runs on."""

from assets import definitions
from resources import RESOURCES

defs = definitions(RESOURCES)
