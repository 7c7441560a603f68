"""tritonpose's serving side: an image in, COCO poses out. Starts without torch."""

__version__ = "0.1.0"
