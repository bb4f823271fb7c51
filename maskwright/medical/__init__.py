"""Medical images: NIfTI and DICOM, methods for small data sets."""
