"""Tell fake (AI-generated or manipulated) images from real ones with a detector of your own."""

__version__ = "0.1.0"
